"""AdaMatch."""

from __future__ import annotations

import math
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
from ..common.alignment import align
from ..common.losses import weighted_cross_entropy
from ..common.norm import frozen_running_statistics

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "adamatch",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:2106.04732",
    needs=("strong-augmentation",),
)
@dataclass
class AdaMatch(AdaptationMethod):
    """Semi-supervised learning and domain adaptation by one rule (Berthelot et al. 2022, arXiv:2106.04732).

    Weak (w) and strong (s) views of labelled x and unlabelled u; Z' from one pass of both together, Z'' from x alone:

        Z_x = Z'_x + r (Z''_x - Z'_x), r ~ U(0, 1) for each logit                     (random logit interpolation)
        a_u = Norm(softmax(Z'_u,w) p_x / p_u)                                         (distribution alignment)
        c = tau mean_b max softmax(Z_x,w)                                             (relative threshold)
        L_x = (1/2) mean CE(Z_x,w, y) + (1/2) mean CE(Z_x,s, y)
        L_u = mean_b 1[max a_u,b >= c] CE(Z'_u,s, argmax a_u,b)
        L = L_x + lambda mu(t) L_u,    mu(t) = 1/2 - cos(min(pi, 2 pi t)) / 2, t the used share of the budget

    p_x is the average over time (decay 0.999) of mean softmax(Z_x,w), p_u the mean over the last 128 batches of
    mean softmax(Z'_u,w), both from 1/K. Only the joint pass moves the running statistics of batch norm. Gradients
    flow through both passes of x, none through a and c. All this is as in the authors' release. Cost of a step:
    (4 + 2 ratio) B examples forward and backward. With weight 0 it is the supervised baseline, on weak views.

    The AdaMatch of USB (semilearn) leaves out the strong labelled views, the pass of x alone with the interpolation,
    and the rise of lambda, and averages p_u over time like p_x, from its first batch; its tau is 0.95. The presets
    take over its tau and ratio, nothing else.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"ratio": 7, "threshold": 0.95},
        "cifar100": {"ratio": 7, "threshold": 0.95},
        "usb": {"ratio": 1, "threshold": 0.95},
    }

    threshold: float = hyper(0.9, low=0.0, high=1.0, help="tau: confidence relative to that on labelled examples")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="final weight lambda of the unlabelled loss")
    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay of the average p_x")
    window: int = hyper(128, low=1, high=1024, help="batches of the average p_u")
    ratio: int = hyper(3, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        like = next(model.parameters())
        self.mean_x = torch.full((view.n_classes,), 1.0 / view.n_classes, device=like.device, dtype=like.dtype)
        self.means_u, self.step = self.mean_x.repeat(self.window, 1), 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        n, m = len(labeled), len(unlabeled)
        of_labeled = torch.cat([labeled.weak, labeled.strong])
        with frozen_running_statistics(self.model):
            alone = self.model(of_labeled)
        joint = self.model(torch.cat([of_labeled, unlabeled.weak, unlabeled.strong]))
        together, weak, strong = joint.split([2 * n, m, m])
        share = torch.rand(together.shape, generator=self.view.generator, device=together.device, dtype=together.dtype)
        logits = together + share * (alone - together)
        confidence, labels = self.targets(logits[:n].detach(), weak.detach())
        supervised = 0.5 * (F.cross_entropy(logits[:n], labeled.y) + F.cross_entropy(logits[n:], labeled.y))
        rise = 0.5 - 0.5 * math.cos(min(math.pi, 2.0 * math.pi * self.view.progress))
        return supervised + self.weight * rise * weighted_cross_entropy(strong, labels, confidence)

    def targets(self, of_labeled: Tensor, of_unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """Which unlabelled examples pass (M,) and their classes (M,), from weak logits (N, K) and (M, K)."""
        p, q = (logits.softmax(dim=1, dtype=self.mean_x.dtype) for logits in (of_labeled, of_unlabeled))
        self.mean_x = torch.lerp(p.mean(dim=0), self.mean_x, self.decay)
        self.means_u[self.step % self.window] = q.mean(dim=0)
        self.step += 1
        confidence, labels = align(q, self.mean_x, self.means_u.mean(dim=0)).max(dim=1)
        return confidence >= self.threshold * p.amax(dim=1).mean(), labels
