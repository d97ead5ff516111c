"""Unsupervised data augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method


@register_method(
    "uda",
    family="consistency",
    protocol="adaptation",
    paper="arXiv:1904.12848",
    needs=("strong-augmentation",),
)
@dataclass
class Uda(AdaptationMethod):
    """Unsupervised data augmentation: soft, sharpened targets for a strong view (Xie et al. 2020, arXiv:1904.12848).

        q_b = softmax(f(a(u_b)) / tau),  no gradient;   m_b = 1[max softmax f(a(u_b)) >= beta]
        L_u = (1/B_u) sum_b m_b CE(f(A(u_b)), q_b)
        L_x = sum_b k_b CE(f(a(x_b)), y_b) / max(1, sum_b k_b),   k_b = 1[softmax f(a(x_b))_{y_b} <= eta_t]
        L = L_x + lambda L_u

    a weak, A strong augmentation. The mask m is taken before sharpening, and the mean is over all B_u examples, as in
    the authors' release. Training signal annealing (`annealing`) leaves out labelled examples whose class is already
    predicted with more than eta_t = s_t (1 - 1/K) + 1/K; with t the used share of the budget, s_t is t (linear),
    1 - exp(-5 t) (log) or exp(5 t - 5) (exp); with "none" all count. All views pass in one forward, so that batch norm
    sees them as one batch. With `weight` 0 there is no annealing either. Defaults are those of the authors' script for
    SVHN, beta of "imagenet" that of the paper; "imdb" is their script for BERT base, which masks and sharpens nothing.

    Counted passes: 3 (1 + 2 ratio) per labelled example.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet": {"threshold": 0.5},
        "imdb": {"threshold": 0.0, "temperature": 1.0, "annealing": "linear", "ratio": 3},
        "usb": {"ratio": 1},
    }

    threshold: float = hyper(0.8, low=0.0, high=1.0, help="confidence beta from which an example counts")
    temperature: float = hyper(0.4, low=0.05, high=1.0, help="temperature tau of the targets")
    annealing: str = hyper(
        "none", choices=("none", "linear", "log", "exp"), help="schedule of training signal annealing"
    )
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the unlabelled loss")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong]))
        of_labeled, weak, strong = logits.split([len(labeled), len(unlabeled), len(unlabeled)])
        weak = weak.detach()
        mask = weak.softmax(dim=1).amax(dim=1) >= self.threshold
        losses = F.cross_entropy(strong, (weak / self.temperature).softmax(dim=1), reduction="none")
        return self._supervised(of_labeled, labeled.y) + self.weight * (losses * mask).mean()  # type: ignore[no-any-return]

    def _supervised(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.annealing == "none":
            return F.cross_entropy(logits, y)
        losses = F.cross_entropy(logits, y, reduction="none")
        # exp(-CE) is the probability of the true class.
        kept = (-losses.detach()).exp() <= annealed(self.annealing, self.view.progress, logits.size(1))
        return (losses * kept).sum() / kept.sum().clamp_min(1)


def annealed(schedule: str, progress: float, n_classes: int) -> float:
    """The threshold eta_t in [1/K, 1] of training signal annealing; `progress` t in [0, 1], `schedule` not "none"."""
    rise = {"linear": progress, "log": 1.0 - math.exp(-5.0 * progress), "exp": math.exp(5.0 * (progress - 1.0))}
    return rise[schedule] * (1.0 - 1.0 / n_classes) + 1.0 / n_classes
