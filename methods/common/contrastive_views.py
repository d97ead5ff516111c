"""The weak and strong augmentations of contrastive learning, batched: every image has draws of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .views import turn_hue

_LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def weak_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (B, C, H, W) mirrored or not."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


@torch.no_grad()
def strong_views(
    images: Tensor,
    generator: torch.Generator,
    min_area: float = 1.0,
    max_area: float = 1.0,
    side: int = 0,
    strength: float = 1.0,
) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same, C 3 or 1: MoCo v2 (arXiv:2003.04297) as AdaContrast uses it.

    A crop of `min_area` to `max_area` of the area with an aspect ratio of 3/4 to 4/3 (none where the least is 1),
    resized back, or to `side` x `side`; with probability 0.8 brightness, contrast and saturation by up to 40 % and hue
    by up to 0.1 of a turn, all times `strength`; gray with 0.2; a Gaussian blur of sigma 0.1 to 2 with 0.5; mirrored
    with 0.5. The colour changes keep this order, which torchvision shuffles; the blur is a true Gaussian of radius 6.
    No draw is seen by the host.
    """
    u = torch.rand(12, len(images), 1, 1, 1, generator=generator, device=images.device, dtype=images.dtype)
    size = (side, side) if side else (images.size(2), images.size(3))
    x = images if min_area >= 1.0 else _crop(images, u[7:11].flatten(1), min_area, max_area, size)
    x = _jitter(x, u[:5], strength)
    gray = _gray(x)
    x = torch.where(u[5] < 0.2, gray, x)
    sigma = 0.1 + 1.9 * u[6]
    x = torch.where(u[11] < 0.5, _blur(x, sigma), x)
    return weak_views(x, generator)


def _crop(images: Tensor, u: Tensor, min_area: float, max_area: float, size: tuple[int, int]) -> Tensor:
    area = min_area + (max_area - min_area) * u[0]
    stretch = torch.exp((2.0 * u[1] - 1.0) * math.log(4 / 3) / 2)
    sides = torch.stack([(area.sqrt() * stretch).clamp_max(1.0), (area.sqrt() / stretch).clamp_max(1.0)])
    shift = (1.0 - sides) * (2.0 * u[2:4] - 1.0)
    theta = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
    theta[:, 0, 0], theta[:, 1, 1] = sides
    theta[:, :, 2] = shift.T
    grid = F.affine_grid(theta, [len(images), images.size(1), *size], align_corners=False)
    out: Tensor = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out


def _jitter(images: Tensor, u: Tensor, strength: float) -> Tensor:
    """A changed copy; `u` (5, B, 1, 1, 1) are uniform: whether, brightness, contrast, saturation, hue."""
    changed = strength * (u[0] < 0.8).to(images.dtype)
    brightness, contrast, saturation = 1.0 + 0.4 * changed * (2.0 * u[1:4] - 1.0)
    x: Tensor = (images * brightness).clamp_(0.0, 1.0)
    mean = _gray(x).mean(dim=(2, 3), keepdim=True)
    x = (contrast * x + (1.0 - contrast) * mean).clamp_(0.0, 1.0)
    x = (saturation * x + (1.0 - saturation) * _gray(x)).clamp_(0.0, 1.0)
    if x.size(1) == 3:
        turn_hue(x, (0.1 * changed * (2.0 * u[4] - 1.0)).squeeze(1))
    return x


def _gray(x: Tensor) -> Tensor:
    if x.size(1) == 1:
        return x
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian of radius 6, one direction after the other; `sigma` (B, 1, 1, 1) in pixels, the edge is repeated."""
    weights = [torch.exp(-0.5 * (tap / sigma) ** 2) for tap in range(7)]
    total = weights[0] + 2.0 * sum(weights[1:])
    for dim, pad in ((3, (6, 6, 0, 0)), (2, (0, 0, 6, 6))):
        length = x.size(dim)
        padded = F.pad(x, pad, mode="replicate")
        x = padded.narrow(dim, 6, length) * (weights[0] / total)
        for tap in range(1, 7):
            pair = padded.narrow(dim, 6 - tap, length) + padded.narrow(dim, 6 + tap, length)
            x = torch.addcmul(x, pair, weights[tap] / total)
    return x
