"""Preprocessing as a layer, so that weights and preprocessing are one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std by channel, for images (B, C, H, W) in [0, 1]; both are buffers, so weights files keep them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Normalized(nn.Module):
    """`normalize` and then `net`: images (B, C, H, W) in [0, 1] -> logits (B, K)."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalize(images))
        return logits
