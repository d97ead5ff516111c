"""Empirical risk minimisation on the strong view."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method


@register_method(
    "erm-augment",
    family="baseline",
    protocol="adaptation",
    paper="arXiv:2112.05090",
    needs=("strong-augmentation",),
    outputs=("classes", "numbers"),
)
@dataclass
class ErmAugment(AdaptationMethod):
    """Empirical risk minimisation with augmentation: L = CE(f(A(x)), y), A the task's strong augmentation.

    ERM with data augmentation as in WILDS 2.0 (Sagawa et al. 2022, arXiv:2112.05090), there with RandAugment of two
    operations, as all methods for images get it: a method that augments strongly and gains no more than this has gained
    from its augmentation, not from unlabelled examples. How it differs from `erm` and `supervised` stands with `erm`.
    """

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        return self.view.task.supervised(self.model, labeled.strong, labeled.y)
