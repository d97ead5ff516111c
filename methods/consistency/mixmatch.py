"""MixMatch."""

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
from ..common.inputs import check_real_inputs
from ..common.mixup import mixing_shares, mixup
from ..common.norm import frozen_running_statistics
from ..common.ramps import linear
from ..common.sharpening import sharpen

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "mixmatch",
    family="consistency",
    protocol="adaptation",
    paper="arXiv:1905.02249",
    needs=("real-inputs",),
)
@dataclass
class MixMatch(AdaptationMethod):
    """Guessed, sharpened labels, and all examples mixed (Berthelot et al. 2019, arXiv:1905.02249, algorithm 1).

        q_b = sharpen( (softmax f(u_b1) + softmax f(u_b2)) / 2, T ),  no gradient
        W = [(x, y), (u_1, q), (u_2, q)],  W~ a shuffle of it
        (x', p') = l W + (1 - l) W~,   l = max(l0, 1 - l0),  l0 ~ Beta(alpha, alpha) for each example
        L = (1/B) sum_{x'} CE(f(x'), p') + lambda(t) (1/2B_u) sum_{u'} (1/K) || softmax f(u') - p' ||^2

    x, u_1, u_2 are weak views; x' are the mixed examples whose larger part is labelled, u' the others. lambda rises
    linearly to `weight` over the first `ramp` of the budget, here the first 1/64 as in the authors' release. Inputs are
    mixed as the task hands them out, so they must be real numbers; integers (token ids) are refused.

    The guesses pass with batch statistics and leave the running ones alone. All mixed examples pass in one forward, so
    that batch norm sees labelled and unlabelled ones together, which the release's interleaving of smaller batches is
    for. With `weight` 0 there are no unlabelled examples, and labelled ones are not mixed either.

    Counted passes: 3 per labelled example and 8 per unlabelled one (2 to guess, 6 to train): 3 + 8 ratio.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"weight": 75.0},
        "cifar100": {"weight": 150.0},
        "stl10": {"weight": 50.0},
        "svhn": {"weight": 250.0},
        "usb": {"alpha": 0.5, "weight": 100.0, "ramp": 0.4},
    }

    temperature: float = hyper(0.5, low=0.1, high=1.0, help="temperature T of the sharpening")
    alpha: float = hyper(0.75, low=0.1, high=4.0, log=True, help="alpha of the Beta distribution of shares")
    weight: float = hyper(100.0, low=0.0, high=500.0, help="final weight lambda of the unlabelled loss")
    ramp: float = hyper(0.015625, low=0.0, high=1.0, help="share of the budget over which the weight rises")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        if self.weight > 0:
            check_real_inputs("mixmatch", "mixes", view)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        q = self._guess(unlabeled)
        x = torch.cat([labeled.weak, unlabeled.weak, unlabeled.weak2])
        p = torch.cat([F.one_hot(labeled.y, q.size(1)).to(q.dtype), q, q])
        shares = mixing_shares(len(x), self.alpha, self.view.generator)
        order = torch.randperm(len(x), generator=self.view.generator, device=x.device)
        p = mixup(p, order, shares)
        of_labeled, of_unlabeled = self.model(mixup(x, order, shares)).split([len(labeled), 2 * len(unlabeled)])
        loss = F.cross_entropy(of_labeled, p[: len(labeled)])
        weight = self.weight * linear(self.view.progress, self.ramp)
        return loss + weight * F.mse_loss(of_unlabeled.softmax(dim=1), p[len(labeled) :])

    @torch.no_grad()
    def _guess(self, unlabeled: Batch) -> Tensor:
        with frozen_running_statistics(self.model):
            both = self.model(torch.cat([unlabeled.weak, unlabeled.weak2])).softmax(dim=1)
        return sharpen((both[: len(unlabeled)] + both[len(unlabeled) :]) / 2, self.temperature)
