"""CoTTA: continual test-time adaptation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.consistency import soft_cross_entropy, symmetric_cross_entropy
from ..common.ema import ema_update
from ..common.norm import use_batch_statistics
from ..common.optimizers import make_optimizer
from ..common.restore import restore_randomly
from ..common.view_norm import target_of_teacher


@register_method("cotta", family="mean-teacher", protocol="stream", paper="arXiv:2203.13591", needs=("images",),
                 frozen=("batch",))  # fmt: skip
@dataclass
class CoTTA(StreamMethod):
    """A mean teacher averaged over views, with stochastic restoration (Wang et al. 2022, arXiv:2203.13591).

    For each batch x_t, with student theta, teacher theta' and source model theta_0:

        y' = f(x_t; theta')                              if mean_b max_k softmax f(x_tb; theta_0) >= p_th
        y' = (1/N) sum_i f(view_i(x_t); theta')          otherwise                          (eqs. 3 to 5)
        theta <- theta - lr * grad_theta (1/B) sum_b CE(softmax y'_b, f(x_tb; theta))       (eq. 2)
        theta' <- alpha theta' + (1 - alpha) theta                                          (eq. 6)
        theta <- m theta_0 + (1 - m) theta,  m ~ Bernoulli(p) for each weight               (eqs. 7, 8)

    y' is predicted. All weights are trained; batch norm uses the statistics of the batch in all three models. The
    confidence of the source model is known before any view is computed, and none is when it suffices. `loss` "sce"
    is the symmetric form of the ImageNet code in the authors' release. Adam has betas (0.9, 0.999), SGD Nesterov
    momentum 0.9. Deviation from the release: dropout is off. Passes per image: 5 without views (1 source, 1
    teacher, 3 student), 4 + N with them.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"p_th": 0.92},
        "cifar100": {"p_th": 0.72},
        "imagenet": {"p_th": 0.1, "restore": 0.001, "lr": 0.01, "optimizer": "sgd", "loss": "sce"},
        "domainnet126": {"p_th": 0.1, "restore": 0.001, "lr": 0.01, "optimizer": "sgd", "loss": "sce"},
    }

    lr: float = hyper(1e-3, low=1e-5, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    p_th: float = hyper(0.92, low=0.0, high=1.0, help="source confidence from which no views are averaged")
    views: int = hyper(32, low=1, high=64, help="number N of averaged views")
    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay alpha of the teacher's weights")
    restore: float = hyper(0.01, low=0.0, high=0.1, help="probability p of restoring a weight, per batch")
    loss: str = hyper("ce", choices=("ce", "sce"), help="cross-entropy or its symmetric form")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        use_batch_statistics(self.model)
        self.anchor, self.teacher = copy.deepcopy(self.model), copy.deepcopy(self.model)
        self.anchor_logits = source.frozen(self.anchor, "batch")
        self.generator = source.generator
        self.updater = make_optimizer(self.model.requires_grad_(True).parameters(), self.optimizer, self.lr)

    def predict(self, images: Tensor) -> Tensor:
        target = target_of_teacher(self.teacher, self.anchor_logits, images, self.p_th, self.views, self.generator)
        logits: Tensor = self.model(images)
        distance = symmetric_cross_entropy if self.loss == "sce" else soft_cross_entropy
        self.updater.zero_grad()
        distance(logits, target).mean().backward()  # type: ignore[no-untyped-call]
        self.updater.step()
        ema_update(self.teacher, self.model, self.decay)
        restore_randomly(list(self.model.parameters()), list(self.anchor.parameters()), self.restore, self.generator)
        return target

    def predictor(self) -> nn.Module:
        return self.teacher
