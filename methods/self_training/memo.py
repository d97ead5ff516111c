"""MEMO: marginal entropy minimisation with one test image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.affine import copies, go_back
from ..common.augmix import augmix_views
from ..common.norm import mix_batch_statistics

AT_ONCE = 1 << 20
"""Pixels of views that are made at once."""


@register_method("memo", family="self-training", protocol="stream", paper="arXiv:2110.09506", needs=("images",))
@dataclass
class Memo(StreamMethod):
    """Marginal entropy minimisation with one test image (Zhang et al. 2022, arXiv:2110.09506).

    For each image x on its own, from the source weights theta_0 of the whole model, with V AugMix views x~_v:

        pbar = (1/V) sum_v softmax(f(x~_v; theta_0))
        theta = theta_0 - lr * grad H(pbar)                         `steps` of them, with new views each
        y = f(x; theta)                                             predicted after the update

    The next image starts from theta_0 again: the order of the stream does not matter. SGD without momentum, as in
    the authors' release (the comparison of Marsden et al. has Nesterov momentum, whose single step is 1.9 times as
    long). Batch norm uses (1 - w) of the statistics of the V views, or of the image alone, and w = `source_weight` of
    the source's: 16/17 in the release, 0.9 in that comparison.

    The views of one image are one batch. Images cannot share one: each has weights of its own. The views themselves are
    made for as many images at once as `AT_ONCE` allows, for half the time.
    Cost: 3 V `steps` + 1 passes per image.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 5e-3, "views": 32, "source_weight": 0.9},
        "cifar100": {"lr": 5e-3, "views": 32, "source_weight": 0.9},
        "imagenet": {"lr": 2.5e-4, "views": 64, "source_weight": 0.9411764705882353},
        "domainnet126": {"lr": 2.5e-4, "views": 64, "source_weight": 0.9},
    }

    lr: float = hyper(5e-3, low=1e-6, high=1e-1, log=True, help="learning rate")
    views: int = hyper(32, low=1, high=128, help="AugMix views V of an image")
    steps: int = hyper(1, low=1, high=10, help="updates per image")
    source_weight: float = hyper(0.9, low=0.0, high=1.0, help="share w of the source statistics in batch norm")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(True)
        if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
            mix_batch_statistics(model, self.source_weight)
        self.theta: list[Tensor] = [*model.parameters()]
        self.start = copies(self.theta)
        self.updater = torch.optim.SGD(self.theta, lr=self.lr)
        self.generator = source.generator

    def predict(self, images: Tensor) -> Tensor:
        n = self.steps * self.views
        logits = []
        for part in images.split(max(1, AT_ONCE // (n * images.size(2) * images.size(3)))):
            views = augmix_views(part, n, self.generator).transpose(0, 1)
            logits += [self._predict_one(*pair) for pair in zip(part.split(1), views, strict=True)]
        return torch.cat(logits)

    def _predict_one(self, image: Tensor, views: Tensor) -> Tensor:
        """(1, C, H, W) and its views (steps V, C, H, W) -> (1, K); the model is the source's before and after."""
        try:
            for part in views.split(self.views):
                self.updater.zero_grad()
                marginal_entropy(self.model(part)).backward()  # type: ignore[no-untyped-call]
                self.updater.step()
            with torch.no_grad():
                logits: Tensor = self.model(image)
            return logits
        finally:
            go_back(self.theta, self.start, self.updater)


def marginal_entropy(logits: Tensor) -> Tensor:
    """The entropy of the mean prediction (1/V) sum_v softmax(logits_v): (V, K) -> scalar, in nats."""
    log_mean = F.log_softmax(logits, dim=1).logsumexp(dim=0) - math.log(len(logits))
    # A class that no view gives any probability adds nothing, not 0 times -inf.
    log_mean = log_mean.clamp_min(torch.finfo(logits.dtype).min)
    return -(log_mean.exp() * log_mean).sum()
