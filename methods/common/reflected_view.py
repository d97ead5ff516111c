"""The view of ROID and CMF: CoTTA's colours and geometry with reflected borders, without blur and noise."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .views import View, draw_views, render_views


def reflected_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of `images` (B, 3, H, W) in [0, 1], of the same shape and range.

    Brightness, contrast, saturation, hue and gamma in random order, padding by reflection, rotation, scaling and
    translation, centre crop and horizontal flip, with the ranges of `draw_views` (release of ROID,
    arXiv:2306.00650). Drawn once for the batch.
    """
    (view,) = draw_views(1, images.size(2), images.size(3), generator)
    return render_reflected(images, view, generator)


@torch.no_grad()
def render_reflected(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """The given `view` of `images` (B, 3, H, W), its borders reflected, its blur left out."""
    # Blur and geometry that change nothing leave the colours alone.
    colours = dataclasses.replace(view, angle=0.0, scale=1.0, shift=(0, 0), sigma=0.001, flip=False)
    x = render_views(images, [colours], generator, gaussian_std=0.0)[0]
    height, width = x.shape[2:]
    cos, sin = (f(math.radians(view.angle)) / view.scale for f in (math.cos, math.sin))
    sign = -1.0 if view.flip else 1.0
    dx, dy = view.shift
    # The inverse map from the centre, R(-angle) (p - shift) / scale, in units of half the way between the outermost
    # pixel centres: about these the padding reflects.
    matrix = torch.tensor(
        [
            [cos * sign * 2 / (width - 1), sin * 2 / (width - 1), -(cos * dx + sin * dy) * 2 / (width - 1)],
            [-sin * sign * 2 / (height - 1), cos * 2 / (height - 1), (sin * dx - cos * dy) * 2 / (height - 1)],
        ],
        dtype=x.dtype,
    ).to(x.device, non_blocking=True)
    across, down = (torch.arange(side, device=x.device, dtype=x.dtype) - (side - 1) / 2 for side in (width, height))
    grid = across.view(1, -1, 1) * matrix[:, 0] + down.view(-1, 1, 1) * matrix[:, 1] + matrix[:, 2]
    # One map for all images: their channels are those of a single one.
    out = F.grid_sample(
        x.flatten(0, 1)[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=True
    )
    return out[0].view_as(x).clamp_(0.0, 1.0)
