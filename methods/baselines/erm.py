"""Empirical risk minimisation, without augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method


@register_method(
    "erm",
    family="baseline",
    protocol="adaptation",
    paper="arXiv:2112.05090",
    outputs=("classes", "numbers", "labels", "tokens", "boxes", "spans"),
)
@dataclass
class Erm(AdaptationMethod):
    """Empirical risk minimisation on the labelled examples as they are: L = CE(f(x), y).

    ERM without data augmentation as in WILDS 2.0 (Sagawa et al. 2022, arXiv:2112.05090). The three baselines differ in
    the view of the labelled examples and in nothing else:

        erm           x              what the data alone teach
        supervised    weak view      what a method that augments weakly is with weight 0
        erm-augment   strong view    what a method that augments strongly must beat

    The view is fixed here, so that every record of `erm` means the same.
    """

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        return self.view.task.supervised(self.model, labeled.x, labeled.y)
