"""SoftMatch."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "softmatch",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:2301.10921",
    needs=("strong-augmentation",),
)
@dataclass
class SoftMatch(AdaptationMethod):
    """Pseudo-labels weighted by a truncated Gaussian of their confidence (Chen et al. 2023, arXiv:2301.10921).

    With q_b = softmax(f(alpha(u_b))), aligned to the uniform distribution as a_b = Norm(q_b (1/K) / E[q]) by the
    average E[q] over time, and averages mu (from 1/K) and s^2 (from 1) of mean and unbiased variance of max a_b over
    a batch:

        lambda(b) = exp(-min(max a_b - mu, 0)^2 / (2 s^2 / n^2))
        L = (1/B) sum_b CE(f(alpha(x_b)), y_b) + w (1/(mu B)) sum_b lambda(b) CE(f(A(u_b)), argmax q_b)

    Alignment moves the weights alone, never the pseudo-labels. n = `sigmas` divides the deviation (the release: 2).
    All averages have the decay m and take the batch in first; E[q] begins with the first batch. One forward of all
    views. Cost of a step: (1 + 2 ratio) B examples forward and backward. The defaults are the published values for
    CIFAR-10, CIFAR-100, STL-10 and SVHN.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"usb": {"ratio": 1}}

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight w of the unlabelled loss")
    sigmas: float = hyper(2.0, low=0.5, high=4.0, help="divisor n of the Gaussian's deviation")
    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay m of the averages over time")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        like = next(model.parameters())
        self.uniform = torch.full((view.n_classes,), 1.0 / view.n_classes, device=like.device, dtype=like.dtype)
        self.mu, self.variance = self.uniform.mean(), like.new_ones(())
        self.mean_q, self.started = torch.zeros_like(self.uniform), False

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong]))
        of_labeled, of_weak, of_strong = logits.split([len(labeled), len(unlabeled), len(unlabeled)])
        loss = F.cross_entropy(of_labeled, labeled.y)
        weights = self.weights(of_weak.detach().softmax(dim=1, dtype=self.uniform.dtype))
        return loss + self.weight * weighted_cross_entropy(of_strong, of_weak.detach().argmax(dim=1), weights)

    def weights(self, q: Tensor) -> Tensor:
        """lambda (B,) of predictions q (B, K), which are taken into the averages over time first."""
        mean = q.mean(dim=0)
        self.mean_q = torch.lerp(mean, self.mean_q, self.decay) if self.started else mean
        self.started = True
        confidence = align(q, self.uniform, self.mean_q).amax(dim=1)
        # One example has no variance: the average then stands.
        variance = confidence.var() if len(confidence) > 1 else self.variance
        self.mu = torch.lerp(confidence.mean(), self.mu, self.decay)
        self.variance = torch.lerp(variance, self.variance, self.decay)
        below = (confidence - self.mu).clamp(max=0.0)
        return (-(below**2) / (2.0 * self.variance / self.sigmas**2)).exp()
