"""Noise on every value by itself: Gaussian, Poisson, salt and pepper, and multiplicative.

Each takes uint8 `images` (B, 3, H, W) and returns as many; a value's noise is one of 2^16 equally likely ones (the
centres of cells of equal mass), where the published code draws floating-point numbers.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .draws import Draws
from .filters import to_uint8


def gaussian_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    noise = draws.normal(0, images[0].numel()).mul_(255.0 * sigma)
    return to_uint8(noise.add_(images.flatten(1))).reshape(images.shape)


def speckle_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    grey = images.flatten(1).to(torch.float32)
    noise = draws.normal(0, images[0].numel()).mul_(sigma).add_(1.0)
    return to_uint8(noise.mul_(grey)).reshape(images.shape)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Poisson noise by inversion: for each grey level, the counts in the order of their 2^16 equally likely draws."""
    row = images.flatten(1).to(torch.int32) << 16
    table = poisson_table(float(photons), images.device)
    return table.index_select(0, (row + draws.words(0, row.shape[1])).reshape(-1)).reshape(images.shape)


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """A value becomes 255 with probability `share` / 2, and 0 with as much."""
    word = draws.words(0, images[0].numel()).reshape(images.shape)
    edge = round(share * 32768)
    white = (word < edge).to(torch.uint8) * 255
    return torch.where(word < 2 * edge, white, images)


@lru_cache(maxsize=5)
def poisson_table(photons: float, device: torch.device) -> Tensor:
    """Row x, entry k: the grey level seen for level x at the quantile (k + 1/2) / 2^16; uint8 (256 * 65536,)."""
    largest = int(photons + 12 * photons**0.5 + 12)
    count = torch.arange(largest + 1, dtype=torch.float64)
    rate = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    # The probability of at most `count` photons; level 0 sees none.
    below = torch.where(rate > 0, torch.special.gammaincc(count[None] + 1, rate.clamp(min=1e-9)), 1.0)
    edges = (below * 65536 - 0.5).ceil().clamp(0, 65536).long()
    edges[:, -1] = 65536
    copies = edges.diff(dim=1, prepend=torch.zeros(256, 1, dtype=torch.long))
    level = to_uint8(255 * (count / photons).clamp(max=1.0)).expand(256, -1)
    return torch.repeat_interleave(level.reshape(-1), copies.reshape(-1)).to(device)
