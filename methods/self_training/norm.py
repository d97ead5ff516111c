"""Test-time batch statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.norm import mix_batch_statistics


@register_method("norm", family="self-training", protocol="stream", paper="arXiv:2006.16971", needs=("batch-norm",),
                 frozen=("batch",))  # fmt: skip
@dataclass
class Norm(StreamMethod):
    """Batch normalisation with the statistics of the test batch, mixed with those of the source.

    Schneider et al. 2020 (arXiv:2006.16971), Nado et al. 2020 (arXiv:2006.10963). In every batch norm layer

        mu = w mu_s + (1 - w) mu_t        sigma^2 = w sigma_s^2 + (1 - w) sigma_t^2

    with source statistics (s) and those of the current batch (t), w = `source_weight`. The paper writes w
    = N / (N + n) for batches of n images and a prior worth N images. w = 0 is pure batch statistics
    ("BN-1"), w = 1 the source model. Nothing is kept from batch to batch. sigma_t^2 is the biased
    variance, as in training. For single images the presets `*/bs1` have the w of the comparison of Marsden et al.
    (arXiv:2306.00650, `BN.ALPHA` 0.1).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"source_weight": 0.0},
        "cifar10/bs1": {"source_weight": 0.9},
        "cifar100": {"source_weight": 0.0},
        "imagenet": {"source_weight": 0.0},
        "imagenet/bs1": {"source_weight": 0.9},
        "domainnet126": {"source_weight": 0.0},
    }

    source_weight: float = hyper(0.0, low=0.0, high=1.0, help="share w of the source statistics")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        mix_batch_statistics(self.model, self.source_weight)
        # Without a mixture, these are passes that other methods take as well.
        self.frozen = source.frozen(self.model, "batch")

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images) if self.source_weight else self.frozen(images)
        return logits
