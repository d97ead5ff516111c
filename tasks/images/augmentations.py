"""Batched augmentations of small grey images (B, 1, H, W) in [0, 1]; all randomness from the given generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(images: Tensor, generator: torch.Generator, pixels: int = 1) -> Tensor:
    """Move every image by a whole number of pixels, at most `pixels` along each axis; the border is filled black."""
    batch, _, height, width = images.shape
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch, 1), generator=generator, device=images.device)
    padded = F.pad(images, (pixels,) * 4)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
