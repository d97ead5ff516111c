"""FreeMatch."""

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
from ..common.losses import weighted_cross_entropy

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "freematch",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:2205.07246",
    needs=("strong-augmentation",),
)
@dataclass
class FreeMatch(AdaptationMethod):
    """Thresholds that follow the model's confidence, and fairness of classes (Wang et al. 2023, arXiv:2205.07246).

    With q_b = softmax(f(alpha(u_b))), Q_b = softmax(f(A(u_b))), all averages over time with decay lambda from 1/K:

        tau <- lambda tau + (1 - lambda) mean_b max q_b
        p~ <- lambda p~ + (1 - lambda) mean_b q_b
        h~ <- lambda h~ + (1 - lambda) histogram of argmax q_b
        tau(c) = tau p~(c) / max_k p~(k)
        L_u = (1/(mu B)) sum_b 1[max q_b >= tau(argmax q_b)] CE(f(A(u_b)), argmax q_b)
        L_f = sum_c N(p~ / h~)(c) log N(mean Q / histogram of argmax Q)(c)         (eq. 11)
        L = (1/B) sum_b CE(f(alpha(x_b)), y_b) + w_u L_u + w_f L_f

    N scales to sum 1; the mean and the histogram in L_f are over the examples that pass the threshold, and L_f is 0
    where none does; a class without any example counts 0 there. Averages take the batch in before its thresholds are
    formed. `cap` bounds tau from above, as the release does on SVHN. In the release w_f stands beside w_u, here it is
    relative to it, so that one weight turns both off. The default w_f is the release's own; the presets are those of
    its configurations (its other default, a quantile in place of the mean in tau, is off in all of them). One forward
    of all views. Cost of a step: (1 + 2 mu) B examples forward and backward.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"fairness": 0.001},
        "cifar100": {"fairness": 0.001},
        "stl10": {"fairness": 0.001},
        "svhn": {"fairness": 0.001, "cap": 0.95},
        "usb": {"ratio": 1, "fairness": 0.001},
    }

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight w_u of the unlabelled loss")
    fairness: float = hyper(0.01, low=0.0, high=0.1, help="weight w_f of the fairness loss, relative to `weight`")
    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay lambda of the averages over time")
    cap: float = hyper(1.0, low=0.5, high=1.0, help="upper bound on tau")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one, mu")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        like = next(model.parameters())
        even = torch.full((view.n_classes,), 1.0 / view.n_classes, device=like.device, dtype=like.dtype)
        self.tau = even.mean()
        self.mean_q, self.histogram = even.clone(), even.clone()

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong]))
        of_labeled, of_weak, of_strong = logits.split([len(labeled), len(unlabeled), len(unlabeled)])
        q = of_weak.detach().softmax(dim=1, dtype=self.mean_q.dtype)
        confidence, labels = q.max(dim=1)
        self.follow(q, confidence, labels)
        mask = confidence >= self.thresholds()[labels]
        loss = F.cross_entropy(of_labeled, labeled.y)
        own = weighted_cross_entropy(of_strong, labels, mask)
        return loss + self.weight * (own + self.fairness * self.fairness_loss(of_strong, mask))

    def thresholds(self) -> Tensor:
        """tau(c) of every class (K,)."""
        return self.tau * self.mean_q / self.mean_q.max()

    def follow(self, q: Tensor, confidence: Tensor, labels: Tensor) -> None:
        """Take the predictions q (B, K) into the averages over time."""
        shares = F.one_hot(labels, q.shape[1]).to(q.dtype).mean(dim=0)
        self.tau = torch.lerp(confidence.mean(), self.tau, self.decay).clamp(max=self.cap)
        self.mean_q = torch.lerp(q.mean(dim=0), self.mean_q, self.decay)
        self.histogram = torch.lerp(shares, self.histogram, self.decay)

    def fairness_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """L_f of logits (B, K) over the examples in `mask` (B,); sums, for a selection would wait for the device."""
        p = logits.softmax(dim=1, dtype=self.mean_q.dtype)
        chosen = mask.to(p.dtype)
        n = chosen.sum().clamp(min=1.0)
        mean = (chosen[:, None] * p).sum(dim=0) / n
        shares = (chosen[:, None] * F.one_hot(p.detach().argmax(dim=1), p.shape[1])).sum(dim=0) / n
        wanted = _scaled(_ratio(self.mean_q, self.histogram))
        fairness = (wanted * (_scaled(_ratio(mean, shares)) + 1e-12).log()).sum()
        # Where nothing passes there is no distribution: 0, and not the logarithm of nothing.
        return torch.where(mask.any(), fairness, fairness.new_zeros(()))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 0 where below is 0."""
    return torch.where(below > 0, above / below.clamp(min=1e-30), torch.zeros_like(above))


def _scaled(weights: Tensor) -> Tensor:
    return weights / weights.sum().clamp(min=1e-30)
