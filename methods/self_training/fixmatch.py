"""FixMatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import chosen_view


@register_method(
    "fixmatch",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:2001.07685",
    needs=("strong-augmentation",),
    outputs=("classes", "numbers"),
)
@dataclass
class FixMatch(AdaptationMethod):
    """Labels from a weak view as targets of a strong one (Sohn et al. 2020, arXiv:2001.07685, algorithm 1).

        q_b = softmax(f(alpha(u_b)))                                     weak view, no gradient
        L = (1/B) sum_b CE(f(alpha(x_b)), y_b)
            + lambda_u (1/(mu B)) sum_b 1[max q_b >= tau] CE(f(A(u_b)), argmax q_b)

    alpha weak, A strong augmentation; mu = `ratio` unlabelled examples per labelled one. All views pass
    in one forward, so that batch norm sees them as one batch. lambda_u is constant: the mask does the
    work of a ramp. The presets `wilds-*` are the values of WILDS 2.0's public code (arXiv:2112.05090),
    which views labelled examples strongly as well: `augment` "strong" puts A(x_b) in the place of alpha(x_b). Where
    outputs are numbers, there is no confidence and no tau: L_u is the squared error against those of the weak view, as
    there.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet": {"threshold": 0.7, "weight": 10.0, "ratio": 5},
        "usb": {"ratio": 1},
        "wilds-camelyon17": {"threshold": 0.7, "ratio": 1, "augment": "strong"},
        "wilds-domainnet": {"threshold": 0.7, "ratio": 2, "augment": "strong"},
        "wilds-fmow": {"threshold": 0.7, "ratio": 1, "augment": "strong"},
        "wilds-iwildcam": {"threshold": 0.7, "ratio": 1, "augment": "strong"},
        "wilds-poverty": {"ratio": 1, "augment": "strong"},
    }

    threshold: float = hyper(0.95, low=0.0, high=1.0, help="confidence tau from which a prediction is a label")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda_u of the unlabelled loss")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one, mu")
    augment: str = hyper(
        "weak",
        choices=("weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        added=True,
        help="view of the labelled examples",
    )

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        x = chosen_view(labeled, self.augment)
        if len(unlabeled) == 0:
            return self.view.task.supervised(self.model, x, labeled.y)
        logits = self.model(torch.cat([x, unlabeled.weak, unlabeled.strong]))
        of_labeled, of_weak, of_strong = logits.split([len(labeled), len(unlabeled), len(unlabeled)])
        task = self.view.task
        loss = task.loss(of_labeled, labeled.y)
        return loss + self.weight * task.pseudo_label_loss(of_strong, of_weak, self.threshold)
