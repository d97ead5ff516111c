"""Batched augmentations of colour images (B, 3, H, W) in [0, 1], as WILDS 2.0 has them, from the generator."""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.color_augmentations import rand_augment

_HOLE = (125 / 255, 123 / 255, 114 / 255)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image from left to right with probability 1/2."""
    turned = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(turned, images.flip(3), images)


def quarter_turn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image by 0, 90, 180 or 270 degrees; images are square."""
    times = torch.randint(0, 4, (len(images), 1, 1, 1), generator=generator, device=images.device)
    result = images
    for number in range(1, 4):
        result = torch.where(times == number, images.rot90(number, (2, 3)), result)
    return result


def fixmatch_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Two operations of FixMatch's pool for each image, one after the other, and then a grey square.

    WILDS 2.0's public code has the pool and the ranges of `rand_augment`. The square's side is drawn from 0 to half of
    the width, its centre anywhere, its grey is that code's.
    """
    images = rand_augment(images, generator)
    size, x, y = torch.rand(3, len(images), generator=generator, device=images.device)
    return grey_square(images, 0.5 * size, x, y)


def grey_square(images: Tensor, size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cover a square of side `size` (B,) times the width around (x, y), all shares of the picture, with mid grey."""
    height, width = images.shape[-2:]
    half = size * width / 2
    columns, rows = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    left, top = ((place * length - half).clamp_min(0).floor() for place, length in ((x, width), (y, height)))
    right, bottom = left + (2 * half), top + (2 * half)
    inside_x = (columns >= left[:, None]) & (columns <= right[:, None])
    inside_y = (rows >= top[:, None]) & (rows <= bottom[:, None])
    colour = images.new_tensor(_HOLE).view(3, 1, 1)
    return torch.where(inside_y[:, None, :, None] & inside_x[:, None, None, :], colour, images)
