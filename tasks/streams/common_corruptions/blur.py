"""Blurs: of the lens, through frosted glass, of motion, of zooming, and Gaussian.

Each takes uint8 `images` (B, 3, H, H) and returns as many.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import zoom_factors
from .draws import Draws
from .filters import clipped_zoom, gaussian, to_uint8


def gaussian_blur(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    return to_uint8(gaussian(images.to(torch.float32), sigma))


def defocus_blur(images: Tensor, draws: Draws, level: tuple[float, float]) -> Tensor:
    """The mean over a disk with a softened edge, mirrored at the picture's edge without repeating the edge pixel.

    By Fourier transforms: the disk is not separable, and has up to 317 pixels.
    """
    side = images.shape[-1]
    kernel = disk(*level)
    reach = len(kernel) // 2
    size = _fast_length(side + 2 * reach)
    padded = F.pad(images.to(torch.float32), (reach, reach, reach, reach), mode="reflect")
    spectrum = torch.fft.rfft2(padded, s=(size, size)) * _disk_spectrum(*level, size, images.device)
    blurred = torch.fft.irfft2(spectrum, s=(size, size))
    return to_uint8(blurred[..., reach : reach + side, reach : reach + side])


def glass_blur(images: Tensor, draws: Draws, level: tuple[float, int, int]) -> Tensor:
    """Pixels take the colour of a neighbour, one after the other, between two slight Gaussian blurs.

    The published loop means to swap two pixels, but its assignment of array views copies: the pixel takes its
    neighbour's colour of that moment, and the neighbour keeps it. So every pixel's colour has one origin in the
    picture, which is found for all at once (`_origins`) and equals the loop's.
    """
    sigma, reach, rounds = level
    side = images.shape[-1]
    blurred = to_uint8(gaussian(images.to(torch.float32), sigma))
    origin = _origins(draws.bits(0, side, side), reach)
    for turn in range(1, rounds):
        # The last round's pixels come from those that the earlier rounds left.
        origin = origin.index_select(0, _origins(draws.bits(turn, side, side), reach))
    pixels = side * side
    image = torch.arange(len(images), dtype=torch.int32, device=images.device)[:, None]
    plane = torch.arange(3, dtype=torch.int32, device=images.device)[None, :, None]
    index = origin.reshape(-1, 1, pixels) + (2 * image[:, :, None] + plane) * pixels
    moved = blurred.reshape(-1).index_select(0, index.reshape(-1)).reshape(images.shape)
    return to_uint8(gaussian(moved.to(torch.float32), sigma))


def motion_blur(images: Tensor, draws: Draws, level: tuple[int, float]) -> Tensor:
    """A one-sided Gaussian along a straight path of whole pixels, at -45 to 45 degrees; rounded, not cut off."""
    radius, sigma = level
    angle = draws.uniform(0, 1) * 90.0 - 45.0
    return to_uint8(motion(images, angle[:, 0], radius, sigma) + 0.5)


def zoom_blur(images: Tensor, draws: Draws, level: tuple[float, float]) -> Tensor:
    """The mean of the picture and its enlargements, the first of which is by 1."""
    x = images.to(torch.float32)
    factors = zoom_factors(*level)
    total = x * 2.0
    for factor in factors[1:]:
        total += clipped_zoom(x, factor)
    return to_uint8(total / (len(factors) + 1))


def motion(x: Tensor, angle: Tensor, radius: int, sigma: float) -> Tensor:
    """Motion blur as ImageMagick's: uint8 (B, C, H, H) with C 1 or 3, degrees (B,) -> float32 (B, C, H, H).

    Pixel p becomes the weighted mean over p + i * (cos, sin) of the angle, rounded to whole pixels, i = 0 to
    2 * radius, with weights falling as a Gaussian of `sigma`; outside, the nearest edge pixel counts.
    """
    side, taps = x.shape[-1], 2 * radius + 1
    step = torch.arange(taps, dtype=torch.float64, device=x.device)
    weights = np.exp(-0.5 * (np.arange(taps) / sigma) ** 2)
    weight: list[float] = (weights / weights.sum()).tolist()
    radians = torch.deg2rad(angle.to(torch.float64))[:, None]
    down = torch.ceil(step * torch.sin(radians) - 0.5).to(torch.int32)
    right = torch.ceil(step * torch.cos(radians) - 0.5).to(torch.int32)
    margin = taps - 1
    padded = F.pad(x.to(torch.float32), (margin, margin, margin, margin), mode="replicate")
    out = torch.zeros(x.shape, device=x.device)
    if side > 64 and x.device.type == "cpu":
        # Large pictures: shifted views of one picture after the other, at the speed of memory.
        for picture, target, rows, columns in zip(padded, out, down.tolist(), right.tolist(), strict=True):
            for tap in range(taps):
                top, left = margin + rows[tap], margin + columns[tap]
                target.add_(picture[:, top : top + side, left : left + side], alpha=weight[tap])
        return out
    # Small pictures, or many at once: every tap picks the pixels of all pictures. A pixel's colours travel together.
    wide = side + 2 * margin
    colours = x.shape[1]
    lanes = 4 if colours == 3 else 1
    packed = F.pad(padded.to(torch.int32).to(torch.uint8).movedim(1, -1), (0, lanes - colours)).contiguous()
    pixels = packed.view(torch.int32 if lanes == 4 else torch.uint8).reshape(-1)
    corner = torch.arange(len(x), dtype=torch.int32, device=x.device)[:, None] * (wide * wide)
    row = torch.arange(side, dtype=torch.int32, device=x.device) + margin
    inside = (row[:, None] * wide + row[None, :]).reshape(1, -1)
    start = corner + down * wide + right
    total = torch.zeros(len(x), side, side, lanes, device=x.device)
    for tap in range(taps):
        index = (inside + start[:, tap : tap + 1]).reshape(-1)
        seen = pixels.index_select(0, index).view(torch.uint8).reshape(total.shape)
        total.add_(seen.to(torch.float32), alpha=weight[tap])
    return out.copy_(total[..., :colours].movedim(-1, 1))


def disk(radius: float, softness: float) -> np.ndarray[Any, Any]:
    """The kernel of `defocus_blur`, (17, 17) or (21, 21) without its empty margin, float64, of sum about 1.

    A disk on whole pixels, smoothed by a Gaussian of 3 taps (5 for radii above 8) whose kernel sees the array
    mirrored at its edge. For the two largest disks a little of the smoothed edge is cut off with the array.
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    offset = np.arange(-reach, reach + 1)
    hard = (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).astype(np.float64)
    hard /= hard.sum()
    beside = np.arange(taps) - taps // 2
    weights = np.exp(-0.5 * (beside / softness) ** 2)
    weights /= weights.sum()
    smooth = np.zeros((len(offset), len(offset)))
    for place, weight in zip(beside, weights, strict=True):
        seen = np.abs(np.arange(len(offset)) + place)
        seen = np.minimum(seen, 2 * (len(offset) - 1) - seen)
        smooth[np.arange(len(offset)), seen] += weight
    kernel = smooth @ hard @ smooth.T
    empty = int(np.argmax(kernel.max(axis=0) > 1e-12))
    return kernel[empty : len(kernel) - empty, empty : len(kernel) - empty]


@lru_cache(maxsize=16)
def _disk_spectrum(radius: float, softness: float, size: int, device: torch.device) -> Tensor:
    """The transform of the disk about the origin; real, since the disk is symmetric. float32 (size, size // 2 + 1)."""
    kernel = torch.from_numpy(disk(radius, softness).copy())
    reach = len(kernel) // 2
    centred = torch.zeros(size, size, dtype=torch.float64)
    centred[: len(kernel), : len(kernel)] = kernel
    centred = centred.roll((-reach, -reach), dims=(0, 1))
    spectrum: Tensor = torch.fft.rfft2(centred)
    return spectrum.real.to(device, torch.float32)


def _fast_length(least: int) -> int:
    """The next length that is even and has no prime factor above 5."""
    length = least + least % 2
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2


def _origins(bits: Tensor, reach: int) -> Tensor:
    """Where in its picture each pixel's colour comes from after one round of moves; flat positions in the batch.

    `bits`, int32 (B, H, H), hold each pixel's draw: its neighbour lies up to `reach` left or above, and up to
    `reach` - 1 right or below. The loop visits pixels in falling order. A neighbour further on has been visited and
    gives what it was given; one before gives its own colour. So a pixel's chain of neighbours further on ends at
    one that took its colour from before (or from the margin, which is never visited), and chains are followed for
    all pixels at once by doubling.
    Returns int32 (B * H * H,).
    """
    side = bits.shape[-1]
    across = ((bits & 0xFFFF) * (2 * reach) >> 16) - reach
    down = (((bits >> 16) & 0xFFFF) * (2 * reach) >> 16) - reach
    place = torch.arange(bits.numel(), dtype=torch.int32, device=bits.device).reshape(bits.shape)
    line = torch.arange(side, device=bits.device)
    visited = (line > reach) & (line <= side - reach)
    move = (down * side + across) * (visited[:, None] & visited[None, :])
    neighbour = (place + move).reshape(-1)
    following = torch.maximum(neighbour, place.reshape(-1))
    for _ in range(math.ceil(math.log2(side * side))):
        further = following.index_select(0, following)
        if torch.equal(further, following):
            break
        following = further
    return neighbour.index_select(0, following)
