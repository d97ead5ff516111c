"""FlexMatch."""

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
    class c and N - sum_c sigma(c) that had none so far,

        beta(c) = sigma(c) / max(max_k sigma(k), N - sum_k sigma(k))
        tau(c) = tau beta(c) / (2 - beta(c))
        L = (1/B) sum_b CE(f(alpha(x_b)), y_b)
            + lambda_u (1/(mu B)) sum_b 1[max q_b >= tau(argmax q_b)] CE(f(A(u_b)), argmax q_b)

    q = softmax(f(alpha(u))) without gradient, alpha weak and A strong views. The examples without a class in the
    denominator of beta are the paper's warm-up of the thresholds, beta / (2 - beta) is its convex mapping. Thresholds
    of a step come from what was kept before it, as in the release; of an example that is twice in a batch the later
    confident class is kept. Counts move by what a step changes, so that no step looks at the whole pool. All views
    pass in one forward. Cost of a step: (1 + 2 mu) B examples forward and backward. The defaults are the published
    values for CIFAR-10 and CIFAR-100.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"usb": {"ratio": 1}}

    threshold: float = hyper(0.95, low=0.0, high=1.0, help="confidence tau from which a class counts as learned")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda_u of the unlabelled loss")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one, mu")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        # K stands for no class. One place more than the pool has takes what is not kept: no step waits for a mask.
        self.kept = torch.full((len(view.unlabeled) + 1,), view.n_classes, device=view.device)
        self.counts = torch.zeros(view.n_classes + 1, dtype=torch.int64, device=view.device)
        self.counts[-1] = len(view.unlabeled)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong]))
        of_labeled, of_weak, of_strong = logits.split([len(labeled), len(unlabeled), len(unlabeled)])
        confidence, labels = of_weak.detach().softmax(dim=1).max(dim=1)
        mask = confidence >= self.thresholds()[labels]
        self.keep(unlabeled.index, labels, confidence)
        loss = F.cross_entropy(of_labeled, labeled.y)
        return loss + self.weight * weighted_cross_entropy(of_strong, labels, mask)

    def thresholds(self) -> Tensor:
        """tau(c) of every class (K,), in float64."""
        counts = self.counts.double()
        beta = counts[:-1] / counts.max()
        return self.threshold * beta / (2.0 - beta)

    def keep(self, index: Tensor, labels: Tensor, confidence: Tensor) -> None:
        """Keep the classes (B,) of the examples at `index` (B,) whose confidence reaches tau, and move the counts."""
        sure = confidence >= self.threshold
        same_and_sure = (index[:, None] == index) & sure
        last = sure & ~same_and_sure.triu(diagonal=1).any(dim=1)
        moved = last.long()
        self.counts.index_add_(0, self.kept[index], -moved).index_add_(0, labels, moved)
        nowhere, nothing = len(self.kept) - 1, self.view.n_classes
        self.kept[torch.where(last, index, nowhere)] = torch.where(last, labels, nothing)
