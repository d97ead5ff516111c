"""Mean Teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.ema import ema_update
from ..common.ramps import sigmoid

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method("mean-teacher", family="mean-teacher", protocol="adaptation", paper="arXiv:1703.01780")
@dataclass
class MeanTeacher(AdaptationMethod):
    """Consistency with the average of past weights (Tarvainen & Valpola 2017, arXiv:1703.01780).

        J = (1/N) sum_n (1/K) || softmax f(x_n, theta, eta) - softmax f(x_n, theta', eta') ||^2
        L = CE(f(x), y) + lambda(t) J
        theta' <- alpha_s theta' + (1 - alpha_s) theta    after step s, alpha_s = min(1 - 1/(s + 1), alpha)

    theta is the student, theta' the teacher, which gets no gradient and is the predictor. eta, eta' are
    two weak views of the same N examples, labelled and unlabelled in one batch. lambda rises to `weight`
    as exp(-5 (1 - t)^2) over the first `ramp` of the budget. The teacher is in training mode and its
    batch norm keeps running statistics of what it sees itself: only parameters are averaged. This, and
    alpha_s, are those of the authors' PyTorch release. `weight` and `ramp` default to what later
    comparisons use with SGD; the presets are those of the authors' TensorFlow release, the weight relative to a
    supervised loss averaged over labelled examples. With weight 0 there is no teacher.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"weight": 100.0, "ramp": 0.27},
        "svhn": {"weight": 100.0, "ramp": 0.22},
    }

    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay alpha of the teacher's weights")
    weight: float = hyper(50.0, low=0.0, high=200.0, help="final weight of the consistency loss J")
    ramp: float = hyper(0.4, low=0.0, high=1.0, help="share of the budget over which the weight rises")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.teacher = copy.deepcopy(model).requires_grad_(False).train() if self.weight > 0 else None
        self.updates = 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if self.teacher is None or len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        weight = self.weight * sigmoid(self.view.progress, self.ramp)
        with torch.no_grad():
            target = self.teacher(torch.cat([labeled.weak2, unlabeled.weak2])).softmax(dim=1)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak]))
        consistency = F.mse_loss(logits.softmax(dim=1), target)
        return F.cross_entropy(logits[: len(labeled)], labeled.y) + weight * consistency

    def after_step(self) -> None:
        if self.teacher is not None:
            self.updates += 1
            ema_update(self.teacher, self.model, min(1.0 - 1.0 / (self.updates + 1), self.decay))

    def predictor(self) -> nn.Module | None:
        return self.teacher
