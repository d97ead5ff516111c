"""RDumb: ETA that is reset now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.affine import copies, go_back, train_affine
from ..common.optimizers import make_optimizer
from ..common.reliable import reliable_entropy


@register_method("rdumb", family="self-training", protocol="stream", paper="arXiv:2306.05401", needs=("norm-layers",))
@dataclass
class RDumb(StreamMethod):
    """ETA, put back to the source model every T batches (Press et al. 2023, arXiv:2306.05401).

    A step is that of `Eta`: L is the loss of `reliable_entropy`. After every T = `period` batches, with or without
    a step in them, theta, the state of the optimiser and the average prediction are those of the start again.

    Cost: 3 passes per image, 1 without a step. The paper has constants for ImageNet alone; the others are those of
    the configurations of the comparison of Marsden et al. (arXiv:2306.00650), which on CIFAR-100 differ from those of
    ETA in epsilon.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam", "d_margin": 0.4},
        "cifar100": {"lr": 1e-3, "optimizer": "adam", "d_margin": 0.4},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "d_margin": 0.05},
        "domainnet126": {"lr": 2.5e-4, "optimizer": "sgd", "d_margin": 0.1},
    }

    lr: float = hyper(1e-3, low=1e-5, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    margin: float = hyper(0.4, low=0.0, high=1.0, help="entropy bound E0 in units of ln K")
    d_margin: float = hyper(0.4, low=0.0, high=1.01, help="bound epsilon on the cosine to the average prediction")
    period: int = hyper(1000, low=1, high=100000, log=True, help="batches T from one reset to the next")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        self.e0 = self.margin * math.log(source.n_classes)
        theta = train_affine(model)
        self.theta: list[Tensor] = [*theta]
        self.start = copies(theta)
        self.updater = make_optimizer(theta, self.optimizer, self.lr)
        self.average: Tensor | None = None
        self.batches = 0

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        loss, self.average = reliable_entropy(logits, self.average, self.e0, self.d_margin)
        if loss is not None:
            self.updater.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.updater.step()
        self.batches += 1
        if self.batches % self.period == 0:
            go_back(self.theta, self.start, self.updater)
            self.average = None
        return logits.detach()
