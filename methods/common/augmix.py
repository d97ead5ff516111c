"""AugMix views as batched tensor operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_AFFINE, _AUTOCONTRAST, _EQUALIZE, _SOLARIZE, _POSTERIZE = range(5)
_KINDS = (_AUTOCONTRAST, _EQUALIZE, *[_AFFINE] * 5, _SOLARIZE, _POSTERIZE)
"""The nine operations: autocontrast, equalise, rotate, shear x and y, translate x and y, solarise, posterise."""
_CHAINS = _DEPTH = 3
_FILL = 128.0
"""Gray level of what lies outside of a rotated, sheared or shifted image."""
_SMALL = 64
"""Up to this side images are cropped with padding, as those of CIFAR; above, by area, as those of ImageNet."""


@torch.no_grad()
def augmix_views(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` AugMix views of each of `images` (B, 3, H, W) in [0, 1] -> (n, B, 3, H, W) in [0, 1].

    Hendrycks et al. 2020 (arXiv:1912.02781) as MEMO uses it (arXiv:2110.09506): a random crop and flip x_0; three
    chains of one to three operations out of nine on x_0; their mixture by a Dirichlet(1, 1, 1), and that one's with
    x_0 by a uniform share. Severity 1 of 10: the level of an operation is uniform in [0.1, 1]. Images are rounded to
    256 levels, on which the operations work as those of Pillow.

    The level and order of every view are drawn on the generator's device and read once by the host, which sorts the
    images by operation.
    """
    x = (images.clamp(0.0, 1.0) * 255.0).round().repeat(n, 1, 1, 1)
    draws = torch.rand((6 + _CHAINS * (2 + 3 * _DEPTH), len(x)), generator=generator, device=generator.device)
    draws = draws.to(x.device, torch.float64)
    x = _crop_and_flip(x, draws[:5])
    mixed = torch.zeros_like(x)
    # Exponential variables over their sum are Dirichlet(1, 1, 1).
    weights = -(1.0 - draws[6 : 6 + _CHAINS]).log()
    weights = (weights / weights.sum(dim=0)).to(x.dtype)
    rest = draws[6 + _CHAINS :]
    depth = (rest[:_CHAINS] * _DEPTH).long() + 1
    operations, levels, signs = rest[_CHAINS:].view(3, _CHAINS, _DEPTH, len(x)).unbind(0)
    chosen = (operations * len(_KINDS)).long()
    chosen = chosen.masked_fill(torch.arange(_DEPTH, device=x.device).view(1, -1, 1) >= depth.unsqueeze(1), -1)
    # One wait for the device.
    table = chosen.tolist()
    for chain in range(_CHAINS):
        part = x.clone()
        for position in range(_DEPTH):
            _apply(part, table[chain][position], 0.1 + 0.9 * levels[chain, position], signs[chain, position] < 0.5)
        mixed += part * weights[chain].view(-1, 1, 1, 1)
    share = draws[5].to(x.dtype).view(-1, 1, 1, 1)
    return torch.lerp(mixed, x, share).div_(255.0).clamp_(0.0, 1.0).view(n, *images.shape)


def _apply(x: Tensor, operations: list[int], levels: Tensor, negative: Tensor) -> None:
    """Apply to each image of x (N, 3, H, W) in [0, 255] its operation, -1 for none, in place."""
    for kind in range(5):
        members = [i for i, operation in enumerate(operations) if operation >= 0 and _KINDS[operation] == kind]
        if not members:
            continue
        index = torch.tensor(members, device=x.device)
        part, level = x[index], levels[index]
        if kind == _AFFINE:
            which = torch.tensor([operations[i] for i in members], device=x.device)
            x[index] = affine(part, _matrices(which, level, negative[index], *x.shape[2:]))
        elif kind == _AUTOCONTRAST:
            x[index] = autocontrast(part)
        elif kind == _EQUALIZE:
            x[index] = equalize(part)
        elif kind == _SOLARIZE:
            x[index] = solarize(part, 256.0 - (level * 25.6).floor())
        else:
            x[index] = posterize(part, 4.0 - (level * 0.4).floor())


def _matrices(operation: Tensor, level: Tensor, negative: Tensor, height: int, width: int) -> Tensor:
    """(N, 2, 3) from output to input pixels, measured from the centre: for operations 2 to 6 of `_KINDS`."""
    sign = torch.where(negative, -1.0, 1.0).to(level.dtype)
    # Whole degrees and whole pixels, as in the reference.
    angle = sign * (level * 3.0).floor() * (math.pi / 180.0) * (operation == 2)
    shear_x, shear_y = (sign * level * 0.03 * (operation == kind) for kind in (3, 4))
    move_x = sign * (level * width / 30.0).floor() * (operation == 5)
    move_y = sign * (level * height / 30.0).floor() * (operation == 6)
    cos, sin = angle.cos(), angle.sin()
    # Pillow shears from the corner of the image, so that the centre moves by half a side.
    rows = [
        [cos, shear_x - sin, move_x + shear_x * (height / 2)],
        [shear_y + sin, cos, move_y + shear_y * (width / 2)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def affine(x: Tensor, matrices: Tensor) -> Tensor:
    """Bilinear samples of x (N, C, H, W) at `matrices` (N, 2, 3) times the output's pixels, all from the centre.

    What lies outside is gray; levels are rounded.
    """
    height, width = x.shape[2:]
    across, down = (torch.arange(side, device=x.device, dtype=x.dtype) - (side - 1) / 2 for side in (width, height))
    m = matrices.to(x.dtype)[:, :, :, None, None]
    at_x, at_y = (m[:, i, 0] * across + m[:, i, 1] * down[:, None] + m[:, i, 2] for i in (0, 1))
    grid = torch.stack([at_x * (2.0 / width), at_y * (2.0 / height)], dim=3)
    out = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).round_()
    outside = (at_x.abs() > width / 2) | (at_y.abs() > height / 2)
    return out.masked_fill_(outside.unsqueeze(1), _FILL)


def autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel of x (N, C, H, W) to the range from 0 to 255; one of a single level stays."""
    low, high = x.amin(dim=(2, 3), keepdim=True).double(), x.amax(dim=(2, 3), keepdim=True).double()
    # A true division: torch takes a number over a tensor as a product with the reciprocal, which rounds otherwise.
    scale = torch.full_like(low, 255.0) / (high - low).clamp_min(1.0)
    stretched = (x * scale - low * scale).floor().clamp(0.0, 255.0)
    return torch.where(high > low, stretched, x.double()).to(x.dtype)


def equalize(x: Tensor) -> Tensor:
    """Flatten the histogram of each channel of x (N, C, H, W); one of a single level stays."""
    levels = x.flatten(0, 1).flatten(1).long()
    counts = torch.zeros((len(levels), 256), dtype=torch.long, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    # The pixels of the highest level do not count for the step from level to level.
    step = (levels.size(1) - counts.gather(1, levels.amax(dim=1, keepdim=True))) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.gather(1, levels).view_as(x).to(x.dtype)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels of x (N, C, H, W) from `threshold` (N,) on."""
    return torch.where(x < threshold.to(x.dtype).view(-1, 1, 1, 1), x, 255.0 - x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` (N,) of the levels of x (N, C, H, W)."""
    step = (2.0 ** (8.0 - bits)).to(x.dtype).view(-1, 1, 1, 1)
    return (x / step).floor() * step


def _crop_and_flip(x: Tensor, draws: Tensor) -> Tensor:
    """A random crop of each image of x (N, 3, H, W), at its own size, and a flip of half of them.

    Small images: a window of their size out of the image padded by 4 black pixels. Larger ones: a window of 8 to 100
    % of the area with an aspect of 3/4 to 4/3, as far as the image goes, resized.
    """
    height, width = x.shape[2:]
    flip = torch.where(draws[4] < 0.5, -1.0, 1.0)
    if max(height, width) <= _SMALL:
        tall, wide = torch.full_like(flip, height), torch.full_like(flip, width)
        top, left = ((draws[i] * 9.0).floor() - 4.0 for i in (0, 1))
    else:
        area = (0.08 + 0.92 * draws[2]) * height * width
        root = (math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[3]).mul(0.5).exp()
        wide = (area.sqrt() * root).round().clamp(1, width)
        tall = (area.sqrt() / root).round().clamp(1, height)
        top, left = ((draws[i] * (side - size + 1)).floor() for i, side, size in ((0, height, tall), (1, width, wide)))
    grids = []
    for start, size, side, sign in ((left, wide, width, flip), (top, tall, height, torch.ones_like(flip))):
        pixels = torch.arange(side, device=x.device, dtype=start.dtype) - (side - 1) / 2
        at = (sign[:, None] * pixels) * (size / side)[:, None] + (size[:, None] - 1) / 2
        # Not beyond the centres of the window's outermost pixels: what is cropped away is not seen.
        at = at.clamp(torch.zeros_like(at), size[:, None] - 1) + start[:, None]
        grids.append((2.0 * at + 1.0) / side - 1.0)
    grid = torch.stack([grids[0][:, None, :].expand(-1, height, -1), grids[1][:, :, None].expand(-1, -1, width)], dim=3)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="zeros", align_corners=False).round_()
