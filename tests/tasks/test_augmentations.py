"""Batched augmentations against slow forms for one image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.pretrain import error_rate
from selfbench.tasks.augmentations import _warp, cutout, rand_augment, shift
from selfbench.tasks.digits import as_tensor, read_digits
from selfbench.tasks.streams.digits_c import DigitsCContinual


@pytest.fixture
def images() -> Tensor:
    return torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augment", [shift, rand_augment])
def test_all_randomness_comes_from_the_generator(augment, images: Tensor) -> None:
    before = torch.get_rng_state()
    first, second, other = (augment(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == images.shape
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 1.0


def test_shift_is_one_of_the_nine_moves(images: Tensor) -> None:
    moves = []
    for image, moved in zip(images, shift(images, seeded()), strict=True):
        padded = F.pad(image, (1, 1, 1, 1))
        fits = [
            (row, column)
            for row in range(3)
            for column in range(3)
            if torch.equal(padded[:, row : row + 8, column : column + 8], moved)
        ]
        assert len(fits) == 1
        moves += fits
    counts = np.bincount([3 * row + column for row, column in moves], minlength=9)
    assert counts.min() > 30


def test_cutout_blackens_a_square_and_nothing_else(images: Tensor) -> None:
    holes = cutout(images + 1, seeded(), side=3) == 0
    rows, columns = holes.any(dim=3).sum(dim=2), holes.any(dim=2).sum(dim=2)
    assert torch.equal(holes.sum(dim=(2, 3)), rows * columns)
    assert set(rows.unique().tolist()) == {2, 3}  # two where the square reaches over the edge
    untouched = cutout(images + 1, seeded(), side=3)[~holes]
    assert torch.equal(untouched, (images + 1)[~holes])


def warp_slowly(image: np.ndarray, strength: list[float], second: float, pixels: float) -> np.ndarray:
    """Every output pixel fetches its input position: p = rotate(scale(shear(q))) + shift, about the centre."""
    rotation, scale, shear_x, shear_y, shift_x = strength[:5]
    angle, zoom = math.radians(25 * rotation), 1 / (1 + 0.2 * scale)
    out = np.zeros((8, 8))
    for row in range(8):
        for column in range(8):
            x, y = column - 3.5, row - 3.5
            x, y = x + 0.3 * shear_x * y, 0.3 * shear_y * x + y
            x, y = zoom * x, zoom * y
            x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
            x, y = x + pixels * shift_x + 3.5, y + (pixels * second if shift_x else 0.0) + 3.5
            left, top = math.floor(x), math.floor(y)
            for r, k in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= r < 8 and 0 <= k < 8:
                    out[row, column] += image[r, k] * (1 - abs(y - r)) * (1 - abs(x - k))
    return out


@pytest.mark.parametrize("pixels", [1.5, 3.0])
def test_the_geometric_operations_are_one_affine_map(images: Tensor, pixels: float) -> None:
    strength = 2 * torch.rand(24, 8, generator=seeded()) - 1
    for number in range(6):  # each operation alone, then none, then all at once
        strength[number] *= torch.arange(8) == number
    second = 2 * torch.rand(24, generator=seeded(2)) - 1
    warped = _warp(images[:24], strength, second, pixels)
    for number in range(24):
        slow = warp_slowly(images[number, 0].numpy(), strength[number].tolist(), float(second[number]), pixels)
        assert np.abs(warped[number, 0].numpy() - slow).max() < 1e-5
    assert torch.allclose(warped[5], images[5], atol=1e-6)


def test_strong_views_keep_the_digit_and_change_more_than_weak_ones(
    digits_c: BundleFolder, nothing_fetched: Data
) -> None:
    """A classifier that never saw the strong augmentation still reads most of its views."""
    images, labels = read_digits(nothing_fetched)
    inputs, classes = as_tensor(images), torch.from_numpy(labels)
    model = DigitsCContinual().model()
    model.load_state_dict(digits_c.model())
    weak, strong = shift(inputs, seeded()), rand_augment(inputs, seeded())
    assert error_rate(model.eval(), weak, classes) < 0.05
    assert 0.05 < error_rate(model, strong, classes) < 0.5
