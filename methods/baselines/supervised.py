"""Labelled examples only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.adaptation import AdaptationMethod, AdaptationTask, Batch, LabeledBatch
from ...suite.registry import register_method

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_loop import View


@register_method("supervised", family="baseline", protocol="adaptation", paper="-")
@dataclass
class Supervised(AdaptationMethod):
    """Cross-entropy on the labelled examples alone: L = CE(f(a(x)), y), with the augmentation a of choice.

    What every other method must beat; with weight 0 each of them is this one with `augment="weak"`.
    """

    augment: str = hyper("weak", choices=("none", "weak", "strong"), help="view of the labelled examples")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        if self.augment == "strong" and type(view.task).strong is AdaptationTask.strong:
            raise UsageError(
                f"{type(view.task).__name__} has no strong augmentation; run supervised with augment=weak or "
                "augment=none there."
            )

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        inputs = {"none": "x", "weak": "weak", "strong": "strong"}[self.augment]
        return F.cross_entropy(self.model(getattr(labeled, inputs)), labeled.y)
