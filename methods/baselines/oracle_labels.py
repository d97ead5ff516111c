"""The oracle: true classes in place of pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import check_augment, chosen_view

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

UNKNOWN = -1


@register_method(
    "oracle-labels",
    family="upper-bound",
    protocol="adaptation",
    paper="-",
    needs=("oracle-labels",),
    outputs=("classes", "tokens"),
)
@dataclass
class OracleLabels(AdaptationMethod):
    """Self-training that is always right: the true classes of the pool are its pseudo-labels.

        L = CE(f(x), y) + weight CE(f(a(u)), y_u)      y_u the true class of u

    An upper bound to every method whose targets are classes of unlabelled examples: with the same views, steps and
    budget it shows what perfect pseudo-labels were worth. x are weak views, a is of choice; all pass in one forward, as
    in FixMatch. Examples of the pool whose class nobody knows are left out of the second mean; it is taken over tokens
    where the outputs are tokens.

    Counted passes: 3 (1 + ratio) per labelled example and step. With weight 0 this is `supervised`, bit by bit.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight of the loss on the pool")
    ratio: int = hyper(7, low=1, high=16, help="examples of the pool per labelled one")
    augment: str = hyper(
        "weak",
        choices=("none", "weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="view of the pool's examples",
    )

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("oracle-labels", self.augment, view)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return self.view.task.supervised(self.model, labeled.weak, labeled.y)
        logits = self.model(torch.cat([labeled.weak, chosen_view(unlabeled, self.augment)]))
        of_labeled, of_pool = logits.split([len(labeled), len(unlabeled)])
        true = self.view.unlabeled_labels[unlabeled.index]
        known = (true != UNKNOWN).sum().clamp_min(1)
        summed = F.cross_entropy(of_pool.flatten(0, -2), true.flatten(), ignore_index=UNKNOWN, reduction="sum")
        loss: Tensor = self.view.task.loss(of_labeled, labeled.y)
        return loss + self.weight * summed / known
