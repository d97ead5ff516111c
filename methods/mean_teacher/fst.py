"""Future self-training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.ema import ema_update
from ..common.norm import use_batch_statistics
from ..common.optimizers import make_optimizer
from ..common.views import random_views


@register_method("fst", family="mean-teacher", protocol="stream", paper="arXiv:2209.06993", needs=("images",))
@dataclass
class Fst(StreamMethod):
    """A teacher that learns from where the student is about to go (Du et al., NeurIPS 2022).

    "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation", arXiv:2209.06993, its variant
    FST-D. For each batch x_t, with student theta, teacher phi and a random view a of CoTTA:

        phi <- m_t phi + (1 - m_t) theta,  theta~ <- theta
        K times: theta~ <- theta~ - lr grad L(theta~, phi),  phi <- m_t phi + (1 - m_t) theta~     virtual steps
        y_t = f(x_t; phi)                                           predicted by the future teacher
        theta <- theta - lr grad L(theta, phi)                      the real step
        L(theta, phi) = w (1/B) sum_b CE(argmax f(x_tb; phi), f(a(x_tb); theta))
        w = (1/B) sum_b 1[max softmax f(x_tb; phi) >= tau],   m_t = min(1 - 1 / (t + 1), m), t = 1, 2, ...

    Virtual students are thrown away, their optimiser's moments too; what they have taught the teacher stays, as in
    the authors' release. K = 0 is the self-training that the paper starts from.

    From segmentation to a stream: a pixel becomes an image, so that w is the share of confident images of the batch
    as theirs is that of confident pixels; there are no labelled source images, so that their supervised loss, the
    mixing of source and target images and the distance to ImageNet features fall away; virtual and real steps share
    the batch and its view, because a stream must not show the batches to come; batch norm layers use the statistics
    of the batch. tau, m, its ramp and the learning rate are the authors' (AdamW; without weight decay here); they
    look K = 3 steps ahead, K = 1 is the default here. Nothing is published for classification streams, so that all
    presets are the same.

    Counted passes per image: 4 (K + 1), each step being a teacher's 1 and a student's 3.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 6e-5, "optimizer": "adam"},
        "cifar100": {"lr": 6e-5, "optimizer": "adam"},
        "imagenet": {"lr": 6e-5, "optimizer": "adam"},
        "domainnet126": {"lr": 6e-5, "optimizer": "adam"},
    }

    lr: float = hyper(6e-5, low=1e-6, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    ahead: int = hyper(1, low=0, high=8, help="K virtual steps")
    momentum: float = hyper(0.999, low=0.5, high=1.0, help="m, of the teacher")
    threshold: float = hyper(0.968, low=0.0, high=1.0, help="tau")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(True)
        use_batch_statistics(self.model)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.updater = make_optimizer(self.model.parameters(), self.optimizer, self.lr)
        self.generator = source.generator
        self.t = 0

    def predict(self, images: Tensor) -> Tensor:
        view = random_views(images, self.generator)[0]
        self.t += 1
        momentum = min(1.0 - 1.0 / (self.t + 1), self.momentum)
        ema_update(self.teacher, self.model, momentum)
        if self.ahead:
            self._look_ahead(images, view, momentum)
        return self._learn(images, view)

    def _look_ahead(self, images: Tensor, view: Tensor, momentum: float) -> None:
        """The virtual steps; the student and its optimiser are then as before."""
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        moments = copy.deepcopy(self.updater.state_dict())
        for _ in range(self.ahead):
            self._learn(images, view)
            ema_update(self.teacher, self.model, momentum)
        with torch.no_grad():
            torch._foreach_copy_(list(self.model.parameters()), weights)
        self.updater.load_state_dict(moments)

    def _learn(self, images: Tensor, view: Tensor) -> Tensor:
        """One step of the student on the teacher's labels, whose logits (B, K) are returned."""
        with torch.no_grad():
            targets: Tensor = self.teacher(images)
        confidence, labels = targets.softmax(dim=1).max(dim=1)
        weight = (confidence >= self.threshold).to(targets.dtype).mean()
        self.updater.zero_grad()
        (weight * F.cross_entropy(self.model(view), labels)).backward()  # type: ignore[no-untyped-call]
        self.updater.step()
        return targets

    def predictor(self) -> nn.Module:
        return self.teacher
