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


def rand_augment(
    images: Tensor, generator: torch.Generator, operations: int = 2, hole: int = 3, pixels: float = 1.5
) -> Tensor:
    """Two of eight operations at random strength for each image, then a hole, all in one pass over the batch.

    After RandAugment (Cubuk et al., 2020, arXiv:1909.13719) with random magnitudes and a final cutout, as FixMatch uses
    it. Operations and their largest magnitudes: rotation 25 degrees, scale 20 %, shear 0.3 along each axis, shift
    `pixels` along each axis at once, brightness 0.3, contrast 50 %, Gaussian noise of sigma 0.2. The five
    geometric ones are composed into one bilinear resampling; nothing is flipped. The defaults of `hole` and
    `pixels` are for 8x8 pixels.
    """
    batch = len(images)
    scores = torch.rand(batch, _OPERATIONS, generator=generator, device=images.device)
    chosen = scores.argsort(dim=1) < operations
    strength = 2 * torch.rand(batch, _OPERATIONS, generator=generator, device=images.device) - 1
    strength = strength * chosen
    second = 2 * torch.rand(batch, generator=generator, device=images.device) - 1
    warped = _warp(images, strength, second, pixels)
    brightness, contrast, noise = (strength[:, number].view(-1, 1, 1, 1) for number in (5, 6, 7))
    mean = warped.mean(dim=(1, 2, 3), keepdim=True)
    grey = (warped - mean) * (1 + 0.5 * contrast) + mean + 0.3 * brightness
    spread = torch.randn(grey.shape, generator=generator, device=images.device)
    return cutout((grey + 0.2 * noise * spread).clamp(0, 1), generator, hole)


_OPERATIONS = 8


def _warp(images: Tensor, strength: Tensor, second: Tensor, pixels: float = 1.5) -> Tensor:
    """Rotation, scale, two shears and a shift as one affine map; `strength` (B, 8) in [-1, 1], 0 for what is left out.

    The map goes from output to input positions in coordinates from -1 to 1.
    """
    rotation, scale, shear_x, shear_y, shift_x = strength[:, :5].unbind(dim=1)
    shift_y = second * (shift_x != 0)
    angle = rotation * (25 * torch.pi / 180)
    cosine, sine, zoom = angle.cos(), angle.sin(), 1 / (1 + 0.2 * scale)
    a, b = 0.3 * shear_x, 0.3 * shear_y
    reach = pixels * 2 / images.shape[-1]
    rows = [
        torch.stack([zoom * (cosine - sine * b), zoom * (cosine * a - sine), reach * shift_x], dim=1),
        torch.stack([zoom * (sine + cosine * b), zoom * (sine * a + cosine), reach * shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def cutout(images: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """Blacken a square of `side` pixels around a random pixel of every image (DeVries and Taylor, 2017, 1708.04552)."""
    batch, _, height, width = images.shape
    centre = torch.rand(2, batch, 1, generator=generator, device=images.device)
    reach = side // 2
    row = (torch.arange(height, device=images.device) - (centre[0] * height).floor()).abs() <= reach
    column = (torch.arange(width, device=images.device) - (centre[1] * width).floor()).abs() <= reach
    return images.masked_fill((row[:, :, None] & column[:, None, :])[:, None], 0.0)
