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
from ..images.domain_views import crop, turn_hue
from .augmentations import flip

BANDS = ("blue", "green", "red", "swir1", "swir2", "temperature", "nir", "nightlights")
_RED_TO_BLUE = [2, 1, 0]
_MEANS, _DEVIATIONS = (0.104145, 0.088619, 0.059183), (0.051458, 0.031880, 0.022926)
"""Of red, green and blue."""
_ANGLE, _SHIFT, _SHEAR, _ZOOM = 10.0, 0.1, 0.1, 0.1
"""Degrees, share of the width, degrees, share."""
_JITTER, _HUE = 0.8, 0.1
_CROP_HUE, _CHANGED, _GREY, _BLURRED, _RADIUS = 0.2, 0.8, 0.2, 0.5, 11
"""Of the crops of contrastive learning: the hue's turn, three probabilities, and the radius of the blur in pixels."""


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


def crop_view(pictures: Tensor, generator: torch.Generator, area: tuple[float, float], side: int = 0) -> Tensor:
    """A crop for SwAV as WILDS 2.0 has it: a part, mirrored or not, in other colours, grey or not, blurred or not.

    (B, 8, H, W) -> a part of a share of `area`, sides 3/4 to 4/3, at the size of the whole or `side` x `side`. Colours
    change with probability 0.8 as in `recolour`, the hue by up to a fifth of a turn; all three are grey with 0.2; the
    blur, of all bands, has a sigma of 0.1 to 2 pixels, with 0.5. For what is not so there see `strong_view`.
    """
    n = len(pictures)
    draw = torch.rand(13, n, generator=generator, device=pictures.device, dtype=pictures.dtype)
    size = (side, side) if side else (pictures.size(2), pictures.size(3))
    part = crop(pictures, draw[:4], draw[4] < 0.5, area, size)
    colours = part[:, _RED_TO_BLUE]
    changed, grey, blurred = (row.view(-1, 1, 1, 1) for row in draw[9:12])
    colours = torch.where(changed < _CHANGED, recolour(colours, draw[5:9], _CROP_HUE), colours)
    colours = torch.where(grey < _GREY, _grey(colours), colours)
    part = torch.cat([colours[:, _RED_TO_BLUE], part[:, 3:]], dim=1)
    return torch.where(blurred < _BLURRED, blur(part, 0.1 + 1.9 * draw[12]), part)


def _grey(colours: Tensor) -> Tensor:
    """Standardised colours (B, 3, H, W) whose reflectances are their luma."""
    mean, deviation = (colours.new_tensor(values).view(3, 1, 1) for values in (_MEANS, _DEVIATIONS))
    return (luma(colours * deviation + mean) - mean) / deviation


def blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian of `sigma` (B,) pixels, cut at a radius of 11, rows and columns in turn; the edge is repeated."""
    taps = torch.arange(-_RADIUS, _RADIUS + 1, device=pictures.device, dtype=pictures.dtype)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    n, channels, height, width = pictures.shape
    rows = pictures.reshape(1, n * channels, height, width)
    kernel = weights.repeat_interleave(channels, dim=0)
    rows = F.conv2d(F.pad(rows, (_RADIUS, _RADIUS, 0, 0), mode="replicate"), kernel[:, None, None], groups=n * channels)
    rows = F.conv2d(
        F.pad(rows, (0, 0, _RADIUS, _RADIUS), mode="replicate"), kernel[:, None, :, None], groups=n * channels
    )
    return rows.view_as(pictures)


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


def recolour(colours: Tensor, draw: Tensor, hue: float = _HUE) -> Tensor:
    """Red, green and blue (B, 3, H, W), standardised, in other brightness, contrast, saturation and hue.

    `draw` (4, B) in [0, 1): factors from 0.2 to 1.8, and the hue by up to the share `hue` of a full turn.
    """
    mean, deviation = (colours.new_tensor(values).view(3, 1, 1) for values in (_MEANS, _DEVIATIONS))
    images = colours * deviation + mean
    bright, contrast, saturation = (1 - _JITTER + 2 * _JITTER * draw[:3]).view(3, -1, 1, 1, 1)
    images = (images * bright).clamp_(0, 1)
    images = torch.lerp(luma(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    images = torch.lerp(luma(images), images, saturation).clamp_(0, 1)
    images = turn_hue(images, 2 * math.pi * hue * (2 * draw[3] - 1)).clamp_(0, 1)
    return (images - mean) / deviation


def hide_square(pictures: Tensor, size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A square of side `size` (B,) times the width around (x, y), all shares of the picture, gets the mean, 0."""
    height, width = pictures.shape[-2:]
    rows, columns = (torch.arange(side, device=pictures.device).add(0.5) for side in (height, width))
    half = (size * width / 2)[:, None]
    inside_x = (columns - x[:, None] * width).abs() < half
    inside_y = (rows - y[:, None] * height).abs() < half
    return pictures.masked_fill((inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(1), 0.0)
