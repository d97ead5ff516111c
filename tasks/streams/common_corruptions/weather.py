"""Weather: snow, frost, fog, brightness, and spatter of water or mud.

Each takes uint8 `images` (B, 3, H, H) and returns as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import motion
from .constants import FOG_SIDE, FROST_PICTURES, FROST_SCALE, MUD
from .draws import Draws
from .filters import clipped_zoom, gaussian, to_uint8

WATER_COLOUR = (175.0, 238.0, 238.0)
MUD_COLOUR = (63.0, 42.0, 20.0)


def snow(images: Tensor, draws: Draws, level: tuple[float, float, float, float, int, float, float]) -> Tensor:
    """Flakes from thresholded noise, smeared downwards, over a whitened picture; the layer is added twice, once turned.

    As published, the layer holds whole grey levels before and after its motion blur.
    """
    mean, deviation, factor, threshold, radius, sigma, weight = level
    side = images.shape[-1]
    flakes = draws.normal(0, side, side).mul_(deviation).add_(mean)
    flakes = clipped_zoom(flakes[:, None], factor)
    layer = to_uint8(255.0 * flakes.masked_fill(flakes < threshold, 0.0))
    angle = draws.uniform(1, 1)[:, 0] * 90.0 - 135.0
    layer = torch.floor(motion(layer, angle, radius, sigma) + 0.5)
    x = images.to(torch.float32)
    whitened = _luminance(x).mul_(1.5).add_(127.5)
    x = weight * x + (1.0 - weight) * torch.maximum(x, whitened)
    return to_uint8(x + (layer + layer.flip(2, 3)))


def frost(images: Tensor, draws: Draws, level: tuple[float, float], pictures: Sequence[Tensor]) -> Tensor:
    """A piece of one of five photographs of frost is added."""
    side = images.shape[-1]
    number = draws.below(0, len(pictures), 1)[:, 0]
    heights, widths = torch.tensor([picture.shape[1:] for picture in pictures], device=number.device).T
    top = (draws.uniform(1, 1)[:, 0] * (heights[number] - side)).long()
    left = (draws.uniform(2, 1)[:, 0] * (widths[number] - side)).long()
    places = zip(number.tolist(), top.tolist(), left.tolist(), strict=True)
    pieces = torch.stack([pictures[n][:, row : row + side, column : column + side] for n, row, column in places])
    return to_uint8(images.to(torch.float32).mul_(level[0]).add_(pieces, alpha=level[1]))


def fog(images: Tensor, draws: Draws, level: tuple[float, float]) -> Tensor:
    """A cloud is added, and the sum scaled back to the picture's brightest value."""
    strength, decay = level
    side = images.shape[-1]
    brightest = images.flatten(1).amax(dim=1).to(torch.float32)[:, None, None, None]
    size = FOG_SIDE[side]
    cloud = plasma(draws.uniform(0, size, size), decay)[:, None, :side, :side] * (255.0 * strength)
    return to_uint8((images + cloud).mul_(brightest / (brightest + 255.0 * strength)))


def brightness(images: Tensor, draws: Draws, added: float) -> Tensor:
    """The value of HSV, the largest of the three colours, rises by `added`, at most to white.

    Hue and saturation stay, so that all three colours grow by one factor, which depends on the largest alone.
    """
    largest = images.amax(dim=1, keepdim=True).to(torch.int32) << 8
    return _brighter(added, images.device).index_select(0, (largest + images).reshape(-1)).reshape(images.shape)


def spatter(images: Tensor, draws: Draws, level: tuple[float, float, float, float, float, bool]) -> Tensor:
    """Drops of water with shaded edges (severities 1 to 3), or stains of mud (4 and 5)."""
    mean, deviation, sigma, threshold, strength, kind = level
    side = images.shape[-1]
    liquid = gaussian(draws.normal(0, side, side).mul_(deviation).add_(mean), sigma)[:, None]
    if kind == MUD:
        mask = gaussian((liquid > threshold).to(torch.float32), strength)
        mask = mask.masked_fill(mask < 0.8, 0.0)
        return to_uint8(images * (1.0 - mask) + _colour(MUD_COLOUR, images.device) * mask)
    drops = to_uint8(255.0 * liquid.masked_fill(liquid < threshold, 0.0))
    shade = drops * _relief(_distance(_edges(drops)))
    brightest = shade.flatten(1).amax(dim=1)[:, None, None, None].clamp(min=1e-6)
    return to_uint8(images + (shade / brightest * strength) * _colour(WATER_COLOUR, images.device))


def plasma(noise: Tensor, decay: float) -> Tensor:
    """Diamond-square fractal on a torus, scaled to [0, 1]; from one number in (0, 1) for each point, (B, N, N)."""
    height = torch.zeros_like(noise)
    step, wibble = noise.shape[-1], 100.0

    def displaced(total: Tensor, rows: slice, columns: slice) -> Tensor:
        # The published code multiplies by the roughness twice.
        return total.mul_(0.25).add_(noise[:, rows, columns] * 2.0 - 1.0, alpha=wibble**2)

    while step >= 2:
        on, off = slice(None, None, step), slice(step // 2, None, step)
        corners = height[:, on, on]
        right, below = corners.roll(-1, 2), corners.roll(-1, 1)
        centre = displaced(corners + right + below + below.roll(-1, 2), off, off)
        height[:, off, off] = centre
        height[:, on, off] = displaced(corners + right + centre + centre.roll(1, 1), on, off)
        height[:, off, on] = displaced(corners + below + centre + centre.roll(1, 2), off, on)
        step //= 2
        wibble /= decay
    height -= height.amin(dim=(1, 2), keepdim=True)
    return height / height.amax(dim=(1, 2), keepdim=True)


def read_frost(files: Sequence[Path]) -> list[Tensor]:
    """Decode the five frost pictures, in the order of `FROST_PICTURES`; each uint8 (3, height, width). Needs Pillow.

    Raises `ValueError` where the files are not those five by name.
    """
    from PIL import Image

    if tuple(file.name for file in files) != FROST_PICTURES:
        raise ValueError(f"expected the files {', '.join(FROST_PICTURES)}, got {', '.join(map(str, files))}")
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous())
    return pictures


def shrink_frost(picture: Tensor, side: int) -> Tensor:
    """A frost picture (3, height, width) at the size at which pieces of `side` pixels are cut from it; uint8.

    Bilinear between pixel centres without smoothing, as published; at the factor 0.2 that picks every fifth pixel.
    """
    scale = FROST_SCALE[side]
    if scale == 1.0:
        return picture
    axes = []
    for length in picture.shape[1:]:
        place = ((torch.arange(round(length * scale), dtype=torch.float64) + 0.5) / scale - 0.5).clamp(0, length - 1)
        low = (place + 1e-9).floor().long()
        axes.append((low, (low + 1).clamp(max=length - 1), (place - low).to(torch.float32)))
    (top, bottom, down), (left, right, across) = axes
    x = picture.cpu().to(torch.float32)
    x = x[:, :, left] + (x[:, :, right] - x[:, :, left]) * across
    x = x[:, top] + (x[:, bottom] - x[:, top]) * down[:, None]
    return to_uint8(x + 0.5).to(picture.device)


def _luminance(x: Tensor) -> Tensor:
    """Rec. 601 luma of (B, 3, H, W), kept as one channel."""
    return (x[:, :1] * 0.299).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


@lru_cache(maxsize=2)
def _colour(rgb: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(rgb, device=device)[:, None, None]


@lru_cache(maxsize=5)
def _brighter(added: float, device: torch.device) -> Tensor:
    """Entry 256 v + x: the new level of a colour x in a pixel whose largest colour is v; uint8 (65536,)."""
    largest = torch.arange(256, dtype=torch.float64)[:, None]
    colour = torch.arange(256, dtype=torch.float64)[None, :]
    raised = (largest / 255 + added).clamp(max=1.0) * 255
    levels = torch.where(largest > 0, colour * raised / largest.clamp(min=1.0), raised)
    return to_uint8(levels).reshape(-1).to(device)


def _edges(grey: Tensor) -> Tensor:
    """Canny's edges between thresholds 50 and 150 of uint8 (B, 1, H, W), as OpenCV finds them; bool (B, 1, H, W)."""
    x = F.pad(grey.to(torch.float32), (1, 1, 1, 1), mode="replicate")
    across = x[..., 2:] - x[..., :-2]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down = x[..., 2:, :] - x[..., :-2, :]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    size = across.abs() + down.abs()
    flat = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[-2:]

    def beside(rows: int, columns: int) -> Tensor:
        return flat[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    steep, even = down.abs() * 32768, across.abs() * 13573  # the tangent of 22.5 degrees, in units of 2^-15
    sideways = steep < even
    upright = steep > even + across.abs() * 65536
    slanted = torch.where(
        across * down < 0,
        (size > beside(-1, 1)) & (size > beside(1, -1)),
        (size > beside(-1, -1)) & (size > beside(1, 1)),
    )
    peak = torch.where(sideways, (size > beside(0, -1)) & (size >= beside(0, 1)), slanted)
    peak = torch.where(upright, (size > beside(-1, 0)) & (size >= beside(1, 0)), peak)
    weak = peak & (size > 50)
    edge = weak & (size > 150)
    while True:
        grown = F.pad(edge, (1, 1, 1, 1))
        grown = grown[..., :-2, :] | grown[..., 1:-1, :] | grown[..., 2:, :]
        grown = (grown[..., :-2] | grown[..., 1:-1] | grown[..., 2:]) & weak
        if torch.equal(grown, edge):
            return edge
        edge = grown


CHAMFER = {
    (0, 1): 1.0, (1, 0): 1.0, (1, 1): 1.4, (1, -1): 1.4,
    (1, 2): 2.1969, (2, 1): 2.1969, (1, -2): 2.1969, (2, -1): 2.1969,
}  # fmt: skip
"""Lengths of the moves of OpenCV's 5x5 approximation of the Euclidean distance."""

FARTHEST = 20.0


def _distance(edge: Tensor) -> Tensor:
    """The distance from each pixel to the next edge, at most 20; bool (B, 1, H, W) to float32.

    A shortest path's moves may come in any order, so that each of the 8 lines is gone along once, both ways, with
    1, 2, 4, ... moves in a step. Lengths count in units of 2^-16, as OpenCV's, which is exact in float32 up to 20.
    """
    margin = 16
    height, width = edge.shape[-2:]
    padded = torch.full((*edge.shape[:-2], height + 2 * margin, width + 2 * margin), FARTHEST, device=edge.device)
    here = padded[..., margin : margin + height, margin : margin + width]
    here.masked_fill_(edge, 0.0)
    for (rows, columns), length in CHAMFER.items():
        length = round(length * 65536) / 65536
        moves = 1
        while moves * length < FARTHEST:
            r, c = rows * moves, columns * moves
            before = padded[..., margin - r : margin - r + height, margin - c : margin - c + width]
            after = padded[..., margin + r : margin + r + height, margin + c : margin + c + width]
            torch.minimum(here, torch.minimum(before, after).add_(length * moves), out=here)
            moves *= 2
    return here


def _relief(distance: Tensor) -> Tensor:
    """The shading of drops from the distance to their edges; float32 (B, 1, H, W) of whole levels."""
    smooth = torch.floor(_box(distance) + 1e-4)
    level = _equalised(smooth.to(torch.int64)).to(torch.float32)
    x = F.pad(level, (1, 1, 1, 1), mode="reflect")
    height, width = level.shape[-2:]
    light = torch.zeros_like(level)
    for row, weights in enumerate(((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))):
        for column, weight in enumerate(weights):
            if weight:
                light.add_(x[..., row : row + height, column : column + width], alpha=weight)
    return torch.floor(_box(light.clamp_(0, 255)) + 0.5)


def _box(x: Tensor) -> Tensor:
    """The mean of 3x3 pixels of (B, 1, H, W), mirrored at the edge."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    x = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 9.0


def _equalised(level: Tensor) -> Tensor:
    """Histogram equalisation of int64 (B, 1, H, W) in 0 to 255, as OpenCV does it: the lowest level becomes 0."""
    flat = level.flatten(1)
    counts = torch.zeros(len(flat), 256, dtype=torch.float32, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    lowest = flat.amin(dim=1, keepdim=True)
    rest = flat.shape[1] - counts.gather(1, lowest)
    above = counts.scatter(1, lowest, 0.0).cumsum(dim=1)
    table = torch.round(above * (255.0 / rest.clamp(min=1.0)))
    # A picture of a single level stays as it is.
    table = torch.where(rest > 0, table, torch.arange(256, device=flat.device, dtype=torch.float32))
    return table.gather(1, flat).reshape(level.shape)
