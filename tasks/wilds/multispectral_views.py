"""Batched augmentations of satellite pictures in eight standardised bands (B, 8, H, W), as WILDS 2.0 has them.

Their means and deviations are those that the package documents; the bands of colour are brought back to reflectances
for the change of colours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.color_augmentations import luma
from ..images.domain_views import turn_hue
from .augmentations import flip

BANDS = ("blue", "green", "red", "swir1", "swir2", "temperature", "nir", "nightlights")
_RED_TO_BLUE = [2, 1, 0]
_MEANS, _DEVIATIONS = (0.104145, 0.088619, 0.059183), (0.051458, 0.031880, 0.022926)
"""Of red, green and blue."""
_ANGLE, _SHIFT, _SHEAR, _ZOOM = 10.0, 0.1, 0.1, 0.1
"""Degrees, share of the width, degrees, share."""
_JITTER, _HUE = 0.8, 0.1


def weak_view(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A flip from left to right with probability 1/2; the published crop takes the whole picture."""
    return flip(pictures, generator)


def strong_view(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, a turn, shift, shear and zoom, a change of the colours, and a square of mean values.

    The values are those of the public code. There the changed colours are not standardised again, so that the network
    sees reflectances in three bands; here they are. The changes come in the order in which torchvision names them, not
    in a random one, and the hue turns in the chroma plane of NTSC in place of HSV.
    """
    n = len(pictures)
    draw = torch.rand(14, n, generator=generator, device=pictures.device, dtype=pictures.dtype)
    moved = move(pictures, 2 * draw[:5] - 1, draw[5] < 0.5, draw[6] < 0.5)
    colours = recolour(moved[:, _RED_TO_BLUE], draw[7:11])
    changed = torch.cat([colours[:, _RED_TO_BLUE], moved[:, 3:]], dim=1)
    return hide_square(changed, 0.5 * draw[11], draw[12], draw[13])


def move(pictures: Tensor, strength: Tensor, left_right: Tensor, up_down: Tensor) -> Tensor:
    """Turn, shift in x and y, shear and zoom by `strength` (5, B) in [-1, 1] of the most; nearest pixel, 0 outside."""
    turn, shift_x, shift_y, shear, zoom = strength
    angle, slant = turn * math.radians(_ANGLE), (shear * math.radians(_SHEAR)).tan()
    cos, sin, inverse = angle.cos(), angle.sin(), 1 / (1 + _ZOOM * zoom)
    signs = [torch.where(mirrored, -1.0, 1.0).to(pictures.dtype) for mirrored in (left_right, up_down)]
    maps = pictures.new_zeros(len(pictures), 2, 3)
    maps[:, 0, 0], maps[:, 0, 1] = inverse * cos * signs[0], inverse * (sin + slant * cos) * signs[0]
    maps[:, 1, 0], maps[:, 1, 1] = -inverse * sin * signs[1], inverse * (cos - slant * sin) * signs[1]
    maps[:, 0, 2], maps[:, 1, 2] = 2 * _SHIFT * shift_x, 2 * _SHIFT * shift_y
    grid = F.affine_grid(maps, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def recolour(colours: Tensor, draw: Tensor) -> Tensor:
    """Red, green and blue (B, 3, H, W), standardised, in other brightness, contrast, saturation and hue.

    `draw` (4, B) in [0, 1): factors from 0.2 to 1.8, and the hue by up to a tenth of a full turn.
    """
    mean, deviation = (colours.new_tensor(values).view(3, 1, 1) for values in (_MEANS, _DEVIATIONS))
    images = colours * deviation + mean
    bright, contrast, saturation = (1 - _JITTER + 2 * _JITTER * draw[:3]).view(3, -1, 1, 1, 1)
    images = (images * bright).clamp_(0, 1)
    images = torch.lerp(luma(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    images = torch.lerp(luma(images), images, saturation).clamp_(0, 1)
    images = turn_hue(images, 2 * math.pi * _HUE * (2 * draw[3] - 1)).clamp_(0, 1)
    return (images - mean) / deviation


def hide_square(pictures: Tensor, size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A square of side `size` (B,) times the width around (x, y), all shares of the picture, gets the mean, 0."""
    height, width = pictures.shape[-2:]
    rows, columns = (torch.arange(side, device=pictures.device).add(0.5) for side in (height, width))
    half = (size * width / 2)[:, None]
    inside_x = (columns - x[:, None] * width).abs() < half
    inside_y = (rows - y[:, None] * height).abs() < half
    return pictures.masked_fill((inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(1), 0.0)
