"""Pi-model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.norm import frozen_running_statistics
from ..common.ramps import sigmoid


@register_method("pi-model", family="consistency", protocol="adaptation", paper="arXiv:1610.02242")
@dataclass
class PiModel(AdaptationMethod):
    """Equal predictions on two noisy passes of an example (Laine & Aila 2017, arXiv:1610.02242, algorithm 1).

        z_n = softmax f(g(x_n)),  z~_n = softmax f(g(x_n)) again, with another augmentation and dropout
        L = CE(z, y) + w(t) (1/N) sum_n (1/K) || z_n - z~_n ||^2

    g is the weak view, N all labelled and unlabelled examples of the batch; gradients flow through z and z~ alike.
    w rises to `weight` as exp(-5 (1 - t)^2) over the first `ramp` of the budget. The paper averages CE over the
    whole batch and scales w by the labelled share of the data, so relative to CE averaged over labelled examples, as
    here, its w_max of 100 is `weight` 100; its ramp is 80 of 300 epochs (both as in the authors' release, commit
    a32743a). `weight` 10 and `ramp` 0.4 are those of semilearn (commit 1ef4cbe), where w rises along a line, the
    gradient through z~ is stopped (`both` false), and the unlabelled examples are taken alone.

    About batch norm the paper is silent where it differs from its own weight normalisation: here each of the two
    passes uses its own batch, and the first alone moves the running statistics. Where the weak view is the identity
    and the model has no dropout, both passes are equal and nothing is learnt from unlabelled examples.

    Counted passes: 6 per example, labelled or not, 6 (1 + ratio) per labelled one; 4 (1 + ratio) with `both` false.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"weight": 100.0, "ramp": 0.27},
        "svhn": {"weight": 100.0, "ramp": 0.27},
        "usb": {"weight": 10.0, "ramp": 0.4, "both": False},
    }

    weight: float = hyper(10.0, low=0.0, high=200.0, help="final weight of the squared difference")
    ramp: float = hyper(0.4, low=0.0, high=1.0, help="share of the budget over which the weight rises")
    both: bool = hyper(
        True, choices=(True, False), help="whether gradients flow through both passes or the first alone"
    )
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        weight = self.weight * sigmoid(self.view.progress, self.ramp)
        logits = self.model(torch.cat([labeled.weak, unlabeled.weak]))
        with frozen_running_statistics(self.model), torch.set_grad_enabled(self.both):
            again = self.model(torch.cat([labeled.weak2, unlabeled.weak2])).softmax(dim=1)
        loss = F.cross_entropy(logits[: len(labeled)], labeled.y)
        return loss + weight * F.mse_loss(logits.softmax(dim=1), again)
