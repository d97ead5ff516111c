"""The augmentation of DomainBed, batched: a random part of the picture, mirrored or not, in other colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .color_augmentations import luma

_AREA, _RATIO = (0.7, 1.0), (3 / 4, 4 / 3)
_JITTER = 0.3
_GREY = 0.1
_TO_CHROMA = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
"""The two chroma axes of NTSC's colour space, beside the weights of `luma`."""


def photograph_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, mirror, jitter the colours and turn grey, each image by itself: (B, 3, H, W) in [0, 1].

    The values are those of DomainBed (arXiv:2007.01434, public code): a part of 70 to 100 % of the area with sides in a
    ratio of 3/4 to 4/3, resized; mirrored with probability 1/2; brightness, contrast and saturation times 0.7 to 1.3
    and the hue turned by up to 0.3 of a full turn; grey with probability 0.1. Chosen here: a part that would reach over
    the picture is cut to it, where torchvision draws again; the colours change in the order in which they are named,
    not in a random one; and the hue turns in the chroma plane of NTSC in place of HSV.
    """
    draw = torch.rand(10, len(images), generator=generator, device=images.device, dtype=images.dtype)
    images = crop(images, draw[:4], draw[4] < 0.5)
    bright, contrast, saturation = (1 - _JITTER + 2 * _JITTER * draw[5:8]).view(3, -1, 1, 1, 1)
    images = (images * bright).clamp_(0, 1)
    images = torch.lerp(luma(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    saturation = torch.where((draw[9] < _GREY).view(-1, 1, 1, 1), 0.0, saturation)
    images = torch.lerp(luma(images), images, saturation).clamp_(0, 1)
    return turn_hue(images, 2 * math.pi * _JITTER * (2 * draw[8] - 1)).clamp_(0, 1)


def crop(
    images: Tensor,
    draw: Tensor,
    mirrored: Tensor,
    share: tuple[float, float] = _AREA,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """A part of each image at the `size` of the whole, or another, by bilinear interpolation; `draw` (4, B) in [0, 1).

    Its rows say area, a `share` of the whole, ratio of the sides (evenly in its logarithm), and where the part lies in
    x and y.
    """
    area = share[0] + (share[1] - share[0]) * draw[0]
    low, high = (math.log(end) for end in _RATIO)
    ratio = torch.exp(low + (high - low) * draw[1])
    wide, tall = (area * ratio).sqrt().clamp_max(1.0), (area / ratio).sqrt().clamp_max(1.0)
    maps = images.new_zeros(len(images), 2, 3)
    maps[:, 0, 0] = torch.where(mirrored, -wide, wide)
    maps[:, 1, 1] = tall
    maps[:, 0, 2], maps[:, 1, 2] = (1 - wide) * (2 * draw[2] - 1), (1 - tall) * (2 * draw[3] - 1)
    height, width = size or images.shape[-2:]
    grid = F.affine_grid(maps, [len(images), images.size(1), height, width], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def turn_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Turn the chroma of each image by `angle` (B,); grey stays as it is. Values may leave [0, 1]."""
    axes = images.new_tensor(_TO_CHROMA)
    basis = torch.cat([images.new_tensor([[0.299, 0.587, 0.114]]), axes])
    turned = images.new_zeros(len(images), 3, 3)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = angle.cos()
    turned[:, 1, 2], turned[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(basis) @ turned @ basis
    result: Tensor = (matrix @ images.flatten(2)).view_as(images)
    return result
