"""Pseudo-Label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import check_augment, chosen_view
from ..common.norm import frozen_running_statistics
from ..common.ramps import linear

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "pseudo-label",
    family="self-training",
    protocol="adaptation",
    paper="-",
    outputs=("classes", "labels", "boxes"),
)
@dataclass
class PseudoLabel(AdaptationMethod):
    """Own confident predictions as labels (Lee 2013, ICML Workshop on Challenges in Representation Learning).

        p = softmax(f(u))
        L = CE(f(x), y) + lambda(t) (1/B_u) sum_u 1[max p >= tau] CE(f(u), argmax p)

    x, u are weak views, and prediction and target come from the same one. lambda rises linearly from 0 to
    `weight` over the first `ramp` of the budget; tau and ramp are those of Oliver et al. 2018
    (arXiv:1804.09170). As in later comparisons, labelled and unlabelled examples pass separately, and
    only the labelled ones move the running statistics of batch norm. The presets `wilds-*` are the values
    of WILDS 2.0's public code (arXiv:2112.05090), which views all pictures strongly: with `augment` "strong"
    x and u are strong views.

    As there, each of several labels is kept by itself where max(p, 1 - p) >= tau, and the mean is over all labels of
    all examples; boxes are those that the detector finds in eval mode with a score of tau or more, pictures without
    any are left out, and the mean over the others is multiplied by the share of boxes that was kept.

    Counted passes: 3 (1 + ratio) per labelled example and step; with boxes 3 + 4 ratio at most.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wilds-amazon": {"threshold": 0.7},
        "wilds-camelyon17": {"threshold": 0.7, "augment": "strong"},
        "wilds-civilcomments": {"threshold": 0.7},
        "wilds-domainnet": {"threshold": 0.7, "ratio": 2, "augment": "strong"},
        "wilds-fmow": {"threshold": 0.7, "augment": "strong"},
        "wilds-globalwheat": {"threshold": 0.5},
        "wilds-iwildcam": {"threshold": 0.7, "augment": "strong"},
        "wilds-ogb-molpcba": {"threshold": 0.7},
    }

    threshold: float = hyper(0.95, low=0.0, high=1.0, help="confidence tau from which a prediction is a label")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="final weight of the unlabelled loss")
    ramp: float = hyper(0.4, low=0.0, high=1.0, help="share of the budget over which the weight rises")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")
    augment: str = hyper(
        "weak",
        choices=("weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        added=True,
        help="view of all examples",
    )

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("pseudo-label", self.augment, view)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        weight = self.weight * linear(self.view.progress, self.ramp)
        task = self.view.task
        loss = task.supervised(self.model, chosen_view(labeled, self.augment), labeled.y)
        if len(unlabeled) == 0:
            return loss
        with frozen_running_statistics(self.model):
            own = task.self_supervised(self.model, chosen_view(unlabeled, self.augment), self.threshold)
        return loss + weight * own
