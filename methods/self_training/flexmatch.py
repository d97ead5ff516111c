"""FlexMatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import AdaptationMethod, Batch, LabeledBatch
from ...suite.registry import register_method
from ..common.losses import weighted_cross_entropy

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_loop import View


@register_method(
    "flexmatch",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:2110.08263",
    needs=("strong-augmentation",),
)
@dataclass
class FlexMatch(AdaptationMethod):
    """FixMatch with a threshold for each class, lower where less was learned (Zhang et al. 2021, arXiv:2110.08263).

    Of every unlabelled example the last class is kept that was predicted with max q >= tau. With sigma(c) examples of
    class c and N - sum_c sigma(c) that had none so far (eqs. 5, 11, 12),

        beta(c) = sigma(c) / max(max_k sigma(k), N - sum_k sigma(k))
        tau(c) = tau beta(c) / (2 - beta(c))
        L = (1/B) sum_b CE(f(alpha(x_b)), y_b)
            + lambda_u (1/(mu B)) sum_b 1[max q_b >= tau(argmax q_b)] CE(f(A(u_b)), argmax q_b)

    q = softmax(f(alpha(u))) without gradient, alpha weak and A strong views. Thresholds of a step come from what was
    kept before it. All views pass in one forward. Cost of a step: (1 + 2 mu) B examples forward and backward.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"usb": {"ratio": 1}}

    threshold: float = hyper(0.95, low=0.0, high=1.0, help="confidence tau from which a class counts as learned")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda_u of the unlabelled loss")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one, mu")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        # One place more than the pool has takes what is not confident: no step waits for a mask.
        self.kept = torch.full((len(view.unlabeled) + 1,), view.n_classes, device=view.device)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong]))
        of_labeled, of_weak, of_strong = logits.split([len(labeled), len(unlabeled), len(unlabeled)])
        confidence, labels = of_weak.detach().softmax(dim=1).max(dim=1)
        mask = confidence >= self.thresholds().to(confidence.dtype)[labels]
        self.keep(unlabeled.index, labels, confidence)
        loss = F.cross_entropy(of_labeled, labeled.y)
        return loss + self.weight * weighted_cross_entropy(of_strong, labels, mask)

    def thresholds(self) -> Tensor:
        """tau(c) of every class (K,)."""
        counts = torch.zeros(self.view.n_classes + 1, device=self.kept.device)
        counts.index_add_(0, self.kept[:-1], torch.ones(len(self.kept) - 1, device=self.kept.device))
        beta = counts[:-1] / counts.max()
        return self.threshold * beta / (2.0 - beta)

    def keep(self, index: Tensor, labels: Tensor, confidence: Tensor) -> None:
        """Keep the classes (B,) of the examples at `index` (B,) whose confidence reaches tau."""
        place = torch.where(confidence >= self.threshold, index, len(self.kept) - 1)
        self.kept[place] = labels
