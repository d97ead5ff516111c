"""Adaptive feature norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import check_augment, chosen_view
from ..common.features import with_features

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "afn",
    family="alignment",
    protocol="adaptation",
    paper="arXiv:1811.07456",
    outputs=("classes", "numbers"),
    version="2",
)
@dataclass
class Afn(AdaptationMethod):
    """Larger feature norms on both sides (Xu et al. 2019, arXiv:1811.07456).

        h = features (what the classifier reads), n = ||h||_2
        L = CE(f(x), y) + w (N(x) + N(u))
        stepwise   N = mean_b (n_b - sg(n_b + step))^2        its gradient in n_b is -2 step / B, whatever n_b
        hard       N = (mean_b n_b - radius)^2

    sg stops the gradient. As in the public code of WILDS 2.0 (arXiv:2112.05090), whose values are the defaults,
    labelled and unlabelled examples pass separately, so that batch norm sees each side by itself. The paper puts a
    layer of its own before the classifier; here the features are those of the task's model.

    Counted passes: 3 (1 + ratio) per labelled example and step. With weight 0 this is `supervised` with the same
    `augment`, bit by bit.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wilds-amazon": {"augment": "none"},
        "wilds-camelyon17": {"augment": "strong"},
        "wilds-civilcomments": {"augment": "none"},
        "wilds-domainnet": {"augment": "strong"},
        "wilds-fmow": {"augment": "strong"},
        "wilds-iwildcam": {"augment": "strong"},
        "wilds-poverty": {"augment": "strong"},
    }

    weight: float = hyper(0.01, low=0.0, high=1.0, help="weight w of the norm's loss")
    kind: str = hyper("stepwise", choices=("stepwise", "hard"), help="what the norms are drawn to")
    step: float = hyper(1.0, low=0.0, high=10.0, help="how much larger each norm is to become (stepwise)")
    radius: float = hyper(1.0, low=0.1, high=100.0, log=True, help="the norm that all are to have on average (hard)")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")
    augment: str = hyper(
        "weak",
        choices=("none", "weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="view of all examples",
    )

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("afn", self.augment, view)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        x = chosen_view(labeled, self.augment)
        if self.weight == 0 or len(unlabeled) == 0:
            return self.view.task.supervised(self.model, x, labeled.y)
        logits, source = with_features(self.model, x)
        _, target = with_features(self.model, chosen_view(unlabeled, self.augment))
        norms = self._norm_loss(source) + self._norm_loss(target)
        return self.view.task.loss(logits, labeled.y) + self.weight * norms

    def _norm_loss(self, features: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        if self.kind == "hard":
            return (norms.mean() - self.radius).square()
        return (norms - (norms.detach() + self.step)).square().mean()
