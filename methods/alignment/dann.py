"""Domain-adversarial training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import check_augment, chosen_view
from ..common.features import classifier_of, with_features

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

HIDDEN = 1024
"""Width of the discriminator in WILDS 2.0."""
GAMMA = 10.0
"""Steepness of the paper's schedule of the reversal."""


@register_method(
    "dann",
    family="alignment",
    protocol="adaptation",
    paper="arXiv:1505.07818",
    needs=("domains",),
    outputs=("classes", "numbers", "labels"),
)
@dataclass
class Dann(AdaptationMethod):
    """Features from which a discriminator cannot tell the domain (Ganin et al. 2016, arXiv:1505.07818).

        h = features (what the classifier reads), D = discriminator, d = domain
        L = CE(f(x), y) + w CE(D(R(h)), d)       over labelled and unlabelled examples together
        R(h) = h,  dR/dh = -lambda I             gradient reversal

    so that D descends its loss while the features ascend it. This is the form of WILDS 2.0 (arXiv:2112.05090) and its
    public code: as many domains as there are, source domains among them, in place of source and target; D has two
    hidden layers of 1024 units with batch norm and ReLU; lambda is 1 and w weighs both sides; all examples pass in one
    forward; batches hold equal shares of `groups` domains on each side; and the rates of features, classifier and
    discriminator are as 1 : 10 : 10. There the rate of the classifier is mostly that of ERM, and so here:
    `feature_scale` slows all other layers. With `reversal="rising"` lambda is the paper's 2 / (1 + exp(-10 t)) - 1 at
    share t of the budget.

    The domains are those that the view holds: source and target where a task grants no more, those of the labelled
    examples where there are no others. Passes are those of the
    model, 3 (1 + ratio) per labelled example and step; those of the discriminator are not examples of the task's model
    and show in seconds alone. With weight 0 there is no discriminator, batches are drawn over all examples alike, all
    layers learn at one rate, and this is `supervised` with the same `augment`, bit by bit.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wilds-amazon": {"weight": 1.0, "groups": 2},
        "wilds-camelyon17": {"weight": 0.1, "groups": 2, "augment": "strong"},
        "wilds-domainnet": {"weight": 1.0, "groups": 4, "ratio": 2, "augment": "strong"},
        "wilds-fmow": {"weight": 1.0, "groups": 8, "augment": "strong"},
        "wilds-iwildcam": {"weight": 0.1, "groups": 2, "augment": "strong"},
        "wilds-ogb-molpcba": {"weight": 0.1, "groups": 4, "lr_scale": 10.0},
        "wilds-poverty": {"weight": 0.1, "groups": 8, "augment": "strong"},
    }

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight w of the discriminator's loss")
    reversal: str = hyper("constant", choices=("constant", "rising"), help="lambda: 1, or rising as in the paper")
    feature_scale: float = hyper(0.1, low=0.01, high=1.0, log=True, help="rate of the features over the classifier's")
    groups: int = hyper(2, low=1, high=16, help="domains in a batch of labelled, and in one of unlabelled examples")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")
    augment: str = hyper(
        "weak",
        choices=("none", "weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="view of all examples",
    )

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def domains_per_batch(self) -> int:
        return self.groups if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("dann", self.augment, view)
        self.discriminator = None
        if self.weight > 0:
            self.domains = torch.cat([view.labeled_domains, view.unlabeled_domains]).unique()  # type: ignore[no-untyped-call]
            if len(self.domains) < 2:
                raise UsageError(
                    f"dann tells domains apart and {type(view.task).__name__} has {len(self.domains)}; it needs a task "
                    "whose labelled and unlabelled examples come from two or more."
                )
            self.discriminator = _discriminator(classifier_of(model).weight, len(self.domains), view.generator)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        if self.discriminator is None:
            return super().parameter_groups()
        head = list(classifier_of(self.model).parameters())
        known = {id(parameter) for parameter in head}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [
            ([parameter for parameter in trained if id(parameter) not in known], self.feature_scale),
            (head, 1.0),
            (list(self.discriminator.parameters()), 1.0),
        ]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        x = chosen_view(labeled, self.augment)
        if self.discriminator is None:
            return self.view.task.supervised(self.model, x, labeled.y)
        both = torch.cat([x, chosen_view(unlabeled, self.augment)]) if len(unlabeled) else x
        logits, features = with_features(self.model, both)
        told = self.discriminator(reverse_gradient(features, self._reversal()))
        domains = torch.searchsorted(self.domains, torch.cat([labeled.domains, unlabeled.domains]))
        loss = self.view.task.loss(logits[: len(labeled)], labeled.y)
        return loss + self.weight * F.cross_entropy(told, domains)

    def _reversal(self) -> float:
        if self.reversal == "constant":
            return 1.0
        return 2.0 / (1.0 + math.exp(-GAMMA * self.view.progress)) - 1.0


def reverse_gradient(features: Tensor, factor: float) -> Tensor:
    """The features as they are; the gradient that comes back is multiplied by -`factor`."""
    return _Reverse.apply(features, factor)  # type: ignore[no-any-return]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def _discriminator(like: Tensor, domains: int, generator: torch.Generator) -> nn.Module:
    """Features (B, D) -> logits (B, domains); of the device and type of `like` (K, D), drawn from `generator`."""
    seed = torch.randint(2**31, (), generator=generator, device=generator.device).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        net = nn.Sequential(
            nn.Linear(like.size(1), HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, domains),
        )  # fmt: skip
    return net.to(like)
