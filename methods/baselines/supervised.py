"""Labelled examples only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import check_augment, chosen_view

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "supervised",
    family="baseline",
    protocol="adaptation",
    paper="-",
    outputs=("classes", "numbers", "labels", "tokens", "boxes", "spans"),
)
@dataclass
class Supervised(AdaptationMethod):
    """Cross-entropy on the labelled examples alone: L = CE(f(a(x)), y), with the augmentation a of choice.

    What every other method must beat; with weight 0 each of them is this one with `augment="weak"`, or with the view
    that it was set to. The rows `erm` and `erm-augment` are this one with a fixed to the identity and to the strong
    view.
    """

    augment: str = hyper(
        "weak",
        choices=("none", "weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="view of the labelled examples",
    )

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("supervised", self.augment, view)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        return self.view.task.supervised(self.model, chosen_view(labeled, self.augment), labeled.y)
