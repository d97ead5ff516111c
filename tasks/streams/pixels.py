"""uint8 pixels of a bundle to images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...suite.bundle import Array


def as_images(pixels: Array) -> Tensor:
    """uint8 (B, C, H, W) to float32 in [0, 1]."""
    return torch.from_numpy(pixels).to(torch.float32).div_(255.0)


def labelled_batches(pixels: Array, labels: Array, batch_size: int = 200) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, H, W) and classes (B,) of all pixels (N, C, H, W), in their order."""
    for start in range(0, len(pixels), batch_size):
        part = slice(start, start + batch_size)
        yield as_images(pixels[part]), torch.from_numpy(labels[part])
