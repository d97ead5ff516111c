"""Corruptions of 8x8 grey images in five severities, after the benchmarks CIFAR-10-C and ImageNet-C.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019. Which constants are whose is said at each table:

- ImageNet-C: those that act on grey values and know no size (all noises, fog, brightness, contrast, JPEG). The weaker
  CIFAR-10-C values hardly move a classifier of digits, whose strokes have nearly full contrast.
- CIFAR-10-C, in pixels as published: Gaussian blur, defocus blur. A stroke here is one to two pixels wide.
- Chosen for this grid, because lengths on 32 or 224 pixels mean nothing on 8: glass blur, motion blur, zoom blur,
  elastic, pixelate.

Snow and frost need photographs, saturation needs colour; they are left out.

Every random number is a hash of (corruption, severity, image, position), so that an image's corruption depends on
nothing else: neither on the batch it is made in nor on the order. All functions are batched and work in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import poisson

Array = np.ndarray[Any, Any]
SIDE = 8
SEVERITIES = (1, 2, 3, 4, 5)
SEED = 20190306

GAUSSIAN_SIGMA = (0.06, 0.1, 0.14, 0.18, 0.22)  # this grid
SHOT_PHOTONS = (60.0, 25.0, 12.0, 8.0, 5.0)  # this grid
IMPULSE_SHARE = (0.03, 0.05, 0.08, 0.11, 0.15)  # this grid
SPECKLE_SIGMA = (0.15, 0.2, 0.35, 0.45, 0.6)  # ImageNet-C
DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # CIFAR-10-C: radius, sigma of its edge
GLASS = ((0.4, 0.06), (0.4, 0.12), (0.4, 0.18), (0.4, 0.24), (0.4, 0.3))  # this grid: sigma, share of pixels that move
BLUR_SIGMA = (0.4, 0.6, 0.7, 0.8, 1.0)  # CIFAR-10-C
MOTION = ((2, 0.5), (2, 0.8), (3, 1.2), (3, 1.6), (4, 2.0))  # this grid: length in pixels, sigma
ZOOM_LARGEST = (1.12, 1.24, 1.36, 1.48, 1.6)  # this grid
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # CIFAR-10-C: strength, decay of roughness
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # CIFAR-10-C
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # CIFAR-10-C
ELASTIC = ((0.5, 1.0), (0.75, 1.0), (1.0, 1.0), (1.25, 1.0), (1.5, 1.0))  # this grid: largest shift in pixels, sigma
PIXELATE_CELLS = (7, 6, 5, 4, 3)  # this grid: cells a side
JPEG_QUALITY = (25, 18, 15, 10, 7)  # ImageNet-C

JPEG_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Quantisation of luminance, ITU-T T.81, table K.1."""


class Draws:
    """The random numbers of the images `ids` (N,) under one corruption at one severity."""

    def __init__(self, corruption: str, severity: int, ids: Array) -> None:
        key = _mix(np.uint64(SEED + 256 * NAMES.index(corruption) + severity))
        self._state = _mix(key ^ ids.astype(np.uint64))
        self._used = 0

    def uniform(self, *shape: int) -> Array:
        """Independent numbers in (0, 1), shape (N, *shape)."""
        count = int(np.prod(shape))
        position = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64) * _GOLDEN
        self._used += count
        bits = _mix(self._state[:, None] + position) >> np.uint64(11)
        return ((bits.astype(np.float64) + 0.5) * 2.0**-53).reshape(-1, *shape)

    def normal(self, *shape: int) -> Array:
        return np.asarray(ndtri(self.uniform(*shape)))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: Array | np.uint64) -> Array:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014); arithmetic is modulo 2^64."""
    z = np.atleast_1d(np.asarray(value, dtype=np.uint64))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def corrupt(images: Array, ids: Array, corruption: str, severity: int) -> Array:
    """Corrupt `images` (N, 8, 8) in [0, 1], whose identities are `ids` (N,); returns uint8 (N, 8, 8).

    Raises `KeyError` for an unknown corruption and `ValueError` for a severity outside 1 to 5.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, got {severity}")
    function = CORRUPTIONS[corruption]
    values = function(images.astype(np.float64), severity - 1, Draws(corruption, severity, ids))
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def gaussian_noise(x: Array, level: int, draws: Draws) -> Array:
    return x + GAUSSIAN_SIGMA[level] * draws.normal(SIDE, SIDE)


def shot_noise(x: Array, level: int, draws: Draws) -> Array:
    """Photons are counted: Poisson noise, by the inverse of its distribution function."""
    photons = SHOT_PHOTONS[level]
    return np.asarray(poisson.ppf(draws.uniform(SIDE, SIDE), x * photons)) / photons


def impulse_noise(x: Array, level: int, draws: Draws) -> Array:
    """A share of the pixels becomes black or white."""
    hit, salt = draws.uniform(2, SIDE, SIDE).swapaxes(0, 1)
    return np.where(hit < IMPULSE_SHARE[level], np.where(salt < 0.5, 1.0, 0.0), x)


def speckle_noise(x: Array, level: int, draws: Draws) -> Array:
    return x + x * SPECKLE_SIGMA[level] * draws.normal(SIDE, SIDE)


def gaussian_blur(x: Array, level: int, draws: Draws) -> Array:
    return _blur(x, BLUR_SIGMA[level])


def defocus_blur(x: Array, level: int, draws: Draws) -> Array:
    """The mean over a disk whose edge is softened by a Gaussian."""
    radius, sigma = DEFOCUS[level]
    offset = np.arange(-3, 4)
    disk = (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).astype(np.float64)
    soft = np.exp(-0.5 * (offset[2:5] / sigma) ** 2)
    soft /= soft.sum()
    edge = _filter_matrix(dict(zip((-1, 0, 1), soft, strict=True)), len(offset))
    kernel = edge @ (disk / disk.sum()) @ edge.T
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))
    return np.einsum("nhwij,ij->nhw", windows, kernel)


def glass_blur(x: Array, level: int, draws: Draws) -> Array:
    """A share of the pixels change places with one of their eight neighbours, between two slight blurs."""
    sigma, share = GLASS[level]
    x = _blur(x, sigma)
    moves = np.floor(draws.uniform(SIDE, SIDE, 2) * 3).astype(np.int64) - 1
    moves *= draws.uniform(SIDE, SIDE, 1) < share
    image = np.arange(len(x))
    for row in range(SIDE - 2, 0, -1):
        for column in range(SIDE - 2, 0, -1):
            other = (image, row + moves[:, row, column, 0], column + moves[:, row, column, 1])
            here = x[:, row, column].copy()
            x[:, row, column] = x[other]
            x[other] = here
    return _blur(x, sigma)


def motion_blur(x: Array, level: int, draws: Draws) -> Array:
    """A one-sided Gaussian along a line, at an angle between -45 and 45 degrees for each image."""
    length, sigma = MOTION[level]
    angle = (draws.uniform(1, 1) - 0.5) * np.pi / 2
    weights = np.exp(-0.5 * (np.arange(length + 1) / sigma) ** 2)
    rows, columns = _grid()
    steps = [
        weight * _sample(x, rows - step * np.sin(angle), columns - step * np.cos(angle))
        for step, weight in enumerate(weights)
    ]
    return np.asarray(sum(steps)) / weights.sum()


def zoom_blur(x: Array, level: int, draws: Draws) -> Array:
    """The mean over 11 enlargements about the centre, from 1 to the largest."""
    rows, columns = _grid()
    centre = (SIDE - 1) / 2
    factors = np.linspace(1.0, ZOOM_LARGEST[level], 11)
    zoomed = [_sample(x, centre + (rows - centre) / factor, centre + (columns - centre) / factor) for factor in factors]
    return np.mean(zoomed, axis=0)


def fog(x: Array, level: int, draws: Draws) -> Array:
    """A cloud is added and the sum scaled back to the brightest value of the image."""
    strength, decay = FOG[level]
    brightest = x.max(axis=(1, 2), keepdims=True)
    return (x + strength * _cloud(draws.uniform(SIDE, SIDE), decay)) * brightest / (brightest + strength)


def brightness(x: Array, level: int, draws: Draws) -> Array:
    return x + BRIGHTNESS[level]


def contrast(x: Array, level: int, draws: Draws) -> Array:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * CONTRAST[level] + mean


def elastic(x: Array, level: int, draws: Draws) -> Array:
    """Pixels move along a smooth random field, scaled so that the largest shift along an axis is as given."""
    shift, sigma = ELASTIC[level]
    field = _blur((2 * draws.uniform(2, SIDE, SIDE) - 1).reshape(-1, SIDE, SIDE), sigma)
    field = field.reshape(-1, 2, SIDE, SIDE)
    field *= shift / np.abs(field).max(axis=(1, 2, 3), keepdims=True)
    rows, columns = _grid()
    return _sample(x, rows + field[:, 0], columns + field[:, 1])


def pixelate(x: Array, level: int, draws: Draws) -> Array:
    """Box-averaged to fewer cells a side and back."""
    cells = PIXELATE_CELLS[level]
    down = _box_matrix(SIDE, cells)
    there_and_back = _box_matrix(cells, SIDE) @ down
    return np.asarray(there_and_back @ x @ there_and_back.T)


def jpeg(x: Array, level: int, draws: Draws) -> Array:
    """Quantisation of the one 8x8 block's cosine coefficients, as a baseline JPEG file of this quality stores them."""
    scale = 5000 // JPEG_QUALITY[level]
    table = np.clip((JPEG_LUMINANCE * scale + 50) // 100, 1, 255)
    k = np.arange(SIDE)
    dct = np.sqrt(2 / SIDE) * np.cos((2 * k[None, :] + 1) * k[:, None] * np.pi / (2 * SIDE))
    dct[0] /= np.sqrt(2)
    coefficients = dct @ (np.rint(x * 255) - 128) @ dct.T
    return np.asarray((dct.T @ (np.rint(coefficients / table) * table) @ dct + 128) / 255)


CORRUPTIONS: dict[str, Callable[[Array, int, Draws], Array]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        speckle_noise,
        defocus_blur,
        gaussian_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        fog,
        brightness,
        contrast,
        elastic,
        pixelate,
        jpeg,
    )
}
NAMES = tuple(CORRUPTIONS)


def _grid() -> tuple[Array, Array]:
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    return rows, columns


def _filter_matrix(taps: dict[int, float], side: int = SIDE) -> Array:
    """The (side, side) matrix of a one-dimensional filter {offset: weight}, edges repeated."""
    matrix = np.zeros((side, side))
    row = np.arange(side)
    for offset, weight in taps.items():
        np.add.at(matrix, (row, np.clip(row + offset, 0, side - 1)), weight)
    return matrix


def _blur(x: Array, sigma: float) -> Array:
    """A Gaussian of `sigma` pixels, cut at four sigma, edges repeated."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = zip(range(-reach, reach + 1), weights / weights.sum(), strict=True)
    matrix = _filter_matrix(dict(taps))
    return np.asarray(matrix @ x @ matrix.T)


def _sample(x: Array, rows: Array, columns: Array) -> Array:
    """Bilinear values of (N, 8, 8) at positions (8, 8) or (N, 8, 8); outside, the nearest edge."""
    rows = np.clip(rows, 0, SIDE - 1)
    columns = np.clip(columns, 0, SIDE - 1)
    top = np.minimum(rows.astype(np.int64), SIDE - 2)
    left = np.minimum(columns.astype(np.int64), SIDE - 2)
    down, right = rows - top, columns - left
    image = np.arange(len(x))[:, None, None]
    upper = x[image, top, left] * (1 - right) + x[image, top, left + 1] * right
    lower = x[image, top + 1, left] * (1 - right) + x[image, top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _cloud(noise: Array, decay: float) -> Array:
    """Diamond-square fractal on a torus in [0, 1], (N, 8, 8), displaced by `noise` in (0, 1) pixel by pixel."""
    height = np.zeros_like(noise)
    offsets = 2 * noise - 1
    step, roughness = SIDE, 100.0
    while step >= 2:
        half = step // 2
        corners = height[:, ::step, ::step]
        right, below = np.roll(corners, -1, axis=2), np.roll(corners, -1, axis=1)
        centre = (corners + right + below + np.roll(right, -1, axis=1)) / 4
        centre = centre + roughness**2 * offsets[:, half::step, half::step]
        height[:, half::step, half::step] = centre
        across = (corners + right + centre + np.roll(centre, 1, axis=1)) / 4
        height[:, ::step, half::step] = across + roughness**2 * offsets[:, ::step, half::step]
        along = (corners + below + centre + np.roll(centre, 1, axis=2)) / 4
        height[:, half::step, ::step] = along + roughness**2 * offsets[:, half::step, ::step]
        step, roughness = half, roughness / decay
    low = height.min(axis=(1, 2), keepdims=True)
    high = height.max(axis=(1, 2), keepdims=True)
    return (height - low) / (high - low)


def _box_matrix(source: int, target: int) -> Array:
    """The (target, source) matrix that averages `source` cells over `target` equal intervals."""
    edges = np.arange(target + 1) * source / target
    low = np.maximum(edges[:-1, None], np.arange(source)[None, :])
    high = np.minimum(edges[1:, None], np.arange(1, source + 1)[None, :])
    return np.clip(high - low, 0.0, None) * target / source
