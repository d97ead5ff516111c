"""Each corruption against a slow form for one image, written from its definition with loops and other libraries."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import norm, poisson

from selfbench.tasks.streams import corruptions as c
from selfbench.tasks.streams.corruptions import NAMES, SEVERITIES, Draws, corrupt

SIDE = 8
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Sixty real digits, (60, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    return load_digits().images[:60] / 16.0


def numbers(name: str, severity: int, image: int) -> Iterator[float]:
    """The documented random stream of one image, in Python integers: SplitMix64 keyed by what is corrupted how."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    state = mix(mix(c.SEED + 256 * NAMES.index(name) + severity) ^ image)
    position = 0
    while True:
        position += 1
        yield ((mix((state + position * 0x9E3779B97F4A7C15) & MASK) >> 11) + 0.5) * 2.0**-53


def cells() -> Iterator[tuple[int, int]]:
    return ((row, column) for row in range(SIDE) for column in range(SIDE))


def gaussian_noise(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    return np.array([[v + c.GAUSSIAN_SIGMA[s] * norm.ppf(next(u)) for v in row] for row in x])


def shot_noise(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    photons = c.SHOT_PHOTONS[s]
    return np.array([[poisson.ppf(next(u), v * photons) / photons for v in row] for row in x])


def impulse_noise(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    hits = [next(u) for _ in cells()]
    salts = [next(u) for _ in cells()]
    out = x.copy()
    for number, place in enumerate(cells()):
        if hits[number] < c.IMPULSE_SHARE[s]:
            out[place] = 1.0 if salts[number] < 0.5 else 0.0
    return out


def speckle_noise(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    return np.array([[v * (1 + c.SPECKLE_SIGMA[s] * norm.ppf(next(u))) for v in row] for row in x])


def blur(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, sigma, mode="nearest", truncate=4.0)


def gaussian_blur(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    return blur(x, c.BLUR_SIGMA[s])


def defocus_blur(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    radius, sigma = c.DEFOCUS[s]
    disk = np.zeros((7, 7))
    for row in range(7):
        for column in range(7):
            disk[row, column] = math.hypot(row - 3, column - 3) <= radius
    weights = np.array([math.exp(-0.5 / sigma**2), 1.0, math.exp(-0.5 / sigma**2)])
    edge = np.outer(weights, weights) / weights.sum() ** 2
    kernel = ndimage.convolve(disk / disk.sum(), edge, mode="nearest")
    return ndimage.correlate(x, kernel, mode="nearest")


def glass_blur(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    sigma, share = c.GLASS[s]
    x = blur(x, sigma)
    moves = {place: (math.floor(3 * next(u)) - 1, math.floor(3 * next(u)) - 1) for place in cells()}
    goes = {place: next(u) < share for place in cells()}
    for row in range(6, 0, -1):
        for column in range(6, 0, -1):
            if goes[row, column]:
                other = row + moves[row, column][0], column + moves[row, column][1]
                x[row, column], x[other] = x[other], x[row, column]
    return blur(x, sigma)


def sample(x: np.ndarray, row: float, column: float) -> float:
    """Bilinear value, outside the nearest edge."""
    return float(ndimage.map_coordinates(x, [[row], [column]], order=1, mode="nearest")[0])


def motion_blur(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    length, sigma = c.MOTION[s]
    angle = math.radians(90 * next(u) - 45)
    out = np.zeros_like(x)
    for row, column in cells():
        total = 0.0
        for step in range(length + 1):
            weight = math.exp(-0.5 * (step / sigma) ** 2)
            out[row, column] += weight * sample(x, row - step * math.sin(angle), column - step * math.cos(angle))
            total += weight
        out[row, column] /= total
    return out


def zoom_blur(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    out = np.zeros_like(x)
    for number in range(11):
        factor = 1 + (c.ZOOM_LARGEST[s] - 1) * number / 10
        for row, column in cells():
            out[row, column] += sample(x, 3.5 + (row - 3.5) / factor, 3.5 + (column - 3.5) / factor) / 11
    return out


def fog(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    strength, decay = c.FOG[s]
    noise = np.array([next(u) for _ in cells()]).reshape(SIDE, SIDE)
    height = np.zeros((SIDE, SIDE))

    def put(row: int, column: int, around: list[tuple[int, int]], rough: float) -> None:
        mean = sum(height[r % SIDE, k % SIDE] for r, k in around) / 4
        height[row, column] = mean + rough**2 * (2 * noise[row, column] - 1)

    step, rough = SIDE, 100.0
    while step > 1:
        h = step // 2
        for r in range(h, SIDE, step):
            for k in range(h, SIDE, step):
                put(r, k, [(r - h, k - h), (r - h, k + h), (r + h, k - h), (r + h, k + h)], rough)
        for r in range(0, SIDE, h):
            for k in range(h if r % step == 0 else 0, SIDE, step):
                put(r, k, [(r - h, k), (r + h, k), (r, k - h), (r, k + h)], rough)
        step, rough = h, rough / decay
    cloud = (height - height.min()) / (height.max() - height.min())
    return (x + strength * cloud) * x.max() / (x.max() + strength)


def brightness(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    return x + c.BRIGHTNESS[s]


def contrast(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    return c.CONTRAST[s] * x + (1 - c.CONTRAST[s]) * x.mean()


def elastic(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    shift, sigma = c.ELASTIC[s]
    fields = [blur(np.array([2 * next(u) - 1 for _ in cells()]).reshape(SIDE, SIDE), sigma) for _ in range(2)]
    largest = max(np.abs(field).max() for field in fields)
    out = np.zeros_like(x)
    for row, column in cells():
        down, right = (shift * field[row, column] / largest for field in fields)
        out[row, column] = sample(x, row + down, column + right)
    return out


def pixelate(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    """Averages on a grid so fine that every cell of both grids is a whole number of fine pixels."""
    n = c.PIXELATE_CELLS[s]
    fine = np.kron(x, np.ones((n, n)))
    small = fine.reshape(n, SIDE, n, SIDE).mean(axis=(1, 3))
    return np.kron(small, np.ones((SIDE, SIDE))).reshape(SIDE, n, SIDE, n).mean(axis=(1, 3))


def jpeg(x: np.ndarray, s: int, u: Iterator[float]) -> np.ndarray:
    """The two-dimensional cosine transform as the standard writes it, coefficient by coefficient."""
    quality = c.JPEG_QUALITY[s]
    assert quality < 50
    grey = np.rint(255 * x) - 128

    def factor(k: int) -> float:
        return math.sqrt(0.5) if k == 0 else 1.0

    def wave(k: int, n: int) -> float:
        return math.cos((2 * n + 1) * k * math.pi / 16)

    kept = np.zeros((SIDE, SIDE))
    for v, w in cells():
        total = sum(grey[r, k] * wave(v, r) * wave(w, k) for r, k in cells())
        table = min(max((c.JPEG_LUMINANCE[v, w] * (5000 // quality) + 50) // 100, 1), 255)
        kept[v, w] = round(factor(v) * factor(w) * total / 4 / table) * table
    out = np.zeros((SIDE, SIDE))
    for r, k in cells():
        out[r, k] = sum(factor(v) * factor(w) * kept[v, w] * wave(v, r) * wave(w, k) for v, w in cells()) / 4
    return (out + 128) / 255


SLOW: dict[str, Callable[[np.ndarray, int, Iterator[float]], np.ndarray]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, speckle_noise, defocus_blur, gaussian_blur, glass_blur, motion_blur,
        zoom_blur, fog, brightness, contrast, elastic, pixelate, jpeg,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_batched_equals_slow_form(name: str, severity: int, images: np.ndarray) -> None:
    ids = np.array([7, 41, 3000])
    fast = corrupt(images[:3], ids, name, severity)
    for image, identity, got in zip(images, ids, fast, strict=False):
        slow = SLOW[name](image.copy(), severity - 1, numbers(name, severity, int(identity)))
        expected = np.clip(slow, 0, 1) * 255
        assert np.abs(got - expected).max() <= 0.5 + 1e-6  # rounding to uint8, and nothing else


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name: str, images: np.ndarray) -> None:
    ids = np.arange(100, 160)
    whole = corrupt(images, ids, name, 4)
    backwards = corrupt(images[::-1], ids[::-1], name, 4)[::-1]
    alone = np.concatenate([corrupt(images[i : i + 1], ids[i : i + 1], name, 4) for i in range(5)])
    assert np.array_equal(whole, backwards)
    assert np.array_equal(whole[:5], alone)


@pytest.mark.parametrize("name", NAMES)
def test_distortion_rises_with_severity(name: str, images: np.ndarray) -> None:
    ids = np.arange(len(images))
    distances = [np.square(corrupt(images, ids, name, s) / 255 - images).mean() ** 0.5 for s in SEVERITIES]
    assert np.all(np.diff(distances) > 0), distances
    assert distances[0] > 0.02


def test_images_and_severities_have_random_numbers_of_their_own() -> None:
    ids = np.arange(2000)
    first = Draws("fog", 1, ids).uniform(64)
    second = Draws("fog", 2, ids).uniform(64)
    other = Draws("elastic", 1, ids).uniform(64)
    for a, b in ((first, second), (first, other), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
    assert abs(first.mean() - 0.5) < 0.003
    assert abs(first.var() - 1 / 12) < 0.001
    draws = Draws("fog", 1, ids)
    assert np.array_equal(np.concatenate([draws.uniform(24), draws.uniform(5, 8).reshape(2000, 40)], axis=1), first)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_what_a_jpeg_file_holds(severity: int, images: np.ndarray) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="needs Pillow")
    ours = corrupt(images, np.arange(len(images)), "jpeg", severity).astype(int)
    far = 0
    for image, got in zip(images, ours, strict=True):
        file = io.BytesIO()
        grey = np.rint(image * 255).astype(np.uint8)
        image_module.fromarray(grey).save(file, "JPEG", quality=c.JPEG_QUALITY[severity - 1])
        decoded = np.asarray(image_module.open(file)).astype(int)
        far += np.abs(got - decoded).max() > 2
    assert far <= len(images) // 10  # where a coefficient lies halfway, integer transforms round to the other side


def test_wrong_arguments_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="severity must be one of"):
        corrupt(images, np.arange(len(images)), "fog", 0)
    with pytest.raises(KeyError):
        corrupt(images, np.arange(len(images)), "snow", 1)
