"""The batched operations against Pillow, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from selfbench.methods.common import augmix
from selfbench.methods.common.augmix import augmix_views

LEVELS = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()
LEVELS[1] = 40 + (LEVELS[1] / 4).floor()  # a narrow range
LEVELS[2] = 77.0  # a single level
LEVELS[3, 0] = (LEVELS[3, 0] > 128) * 200.0  # two levels
SMOOTH = torch.nn.functional.interpolate(LEVELS[:, :, :4, :4], (32, 32), mode="bilinear").round()


def _pillow(x: Tensor) -> Image.Image:
    return Image.fromarray(x.permute(1, 2, 0).to(torch.uint8).numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def test_colour_operations_equal_pillow() -> None:
    thresholds, bits = torch.tensor([230.0, 250, 256, 255, 231, 240]), torch.tensor([4.0, 3, 4, 2, 1, 4])
    results = {
        "autocontrast": (augmix.autocontrast(LEVELS), lambda image, i: ImageOps.autocontrast(image)),
        "equalize": (augmix.equalize(LEVELS), lambda image, i: ImageOps.equalize(image)),
        "solarize": (
            augmix.solarize(LEVELS, thresholds),
            lambda image, i: ImageOps.solarize(image, int(thresholds[i])),
        ),
        "posterize": (augmix.posterize(LEVELS, bits), lambda image, i: ImageOps.posterize(image, int(bits[i]))),
    }
    for name, (mine, operation) in results.items():
        for i, x in enumerate(LEVELS):
            assert torch.equal(mine[i], _tensor(operation(_pillow(x), i))), (name, i)


@pytest.mark.parametrize("operation", range(2, 7))
@pytest.mark.parametrize("negative", [False, True])
def test_geometry_equals_pillow_within_a_level(operation: int, negative: bool) -> None:
    level = torch.tensor([0.15, 0.4, 0.7, 0.99, 0.95, 1.0], dtype=torch.float64)
    matrices = augmix._matrices(torch.full((6,), operation), level, torch.full((6,), negative), 32, 32)
    mine = augmix.affine(SMOOTH, matrices)
    sign = -1 if negative else 1
    gray = (128, 128, 128)
    for i, u in enumerate(level.tolist()):
        image = _pillow(SMOOTH[i])
        if operation == 2:
            theirs = image.rotate(sign * math.floor(3 * u), resample=Image.Resampling.BILINEAR, fillcolor=gray)
        else:
            shear, move = sign * 0.03 * u, sign * math.floor(u * 32 / 30)
            data = {
                3: (1, shear, 0, 0, 1, 0),
                4: (1, 0, 0, shear, 1, 0),
                5: (1, 0, move, 0, 1, 0),
                6: (1, 0, 0, 0, 1, move),
            }[operation]
            theirs = image.transform(
                (32, 32), Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR, fillcolor=gray
            )
        difference = (mine[i] - _tensor(theirs)).abs()
        # A sample on the very edge may fall on either side of it.
        assert (difference <= 1.0).float().mean() > 0.995, (i, difference.max())


def test_crops_are_windows_of_the_padded_image() -> None:
    x = LEVELS[:1].repeat(20, 1, 1, 1)
    draws = torch.rand(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    crops = augmix._crop_and_flip(x, draws)
    padded = torch.nn.functional.pad(x[0], (4, 4, 4, 4))
    seen = set()
    for crop, draw in zip(crops, draws.T.tolist(), strict=True):
        top, left, flip = int(9 * draw[0]), int(9 * draw[1]), draw[4] < 0.5
        window = padded[:, top : top + 32, left : left + 32]
        assert torch.equal(crop, window.flip(2) if flip else window)
        seen.add((top, left, flip))
    assert len(seen) > 10


def test_resized_crops_equal_pillow_within_a_level() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(8, 3, 10, 12, generator=generator).mul(255)
    x = torch.nn.functional.interpolate(x, (80, 96), mode="bilinear").round()
    draws = torch.rand(5, 8, generator=generator, dtype=torch.float64)
    crops = augmix._crop_and_flip(x, draws)
    for i, draw in enumerate(draws.T.tolist()):
        area = (0.08 + 0.92 * draw[2]) * 80 * 96
        aspect = (3 / 4) * (16 / 9) ** draw[3]
        wide = min(96, round(math.sqrt(area * aspect)))
        tall = min(80, round(math.sqrt(area / aspect)))
        top, left = int(draw[0] * (80 - tall + 1)), int(draw[1] * (96 - wide + 1))
        image = _pillow(x[i]).crop((left, top, left + wide, top + tall)).resize((96, 80), Image.Resampling.BILINEAR)
        expected = _tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw[4] < 0.5 else image)
        assert (crops[i] - expected).abs().max() <= 1.0


def test_views_are_mixtures_of_their_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """With operations that do nothing, every view is its crop, whatever the weights."""
    monkeypatch.setattr(augmix, "_apply", lambda *args: None)
    images = LEVELS / 255
    views = augmix_views(images, 4, torch.Generator().manual_seed(1))
    draws = torch.rand((6 + 3 * 11, 24), generator=torch.Generator().manual_seed(1)).double()
    expected = augmix._crop_and_flip((images * 255).round().repeat(4, 1, 1, 1), draws[:5]) / 255
    torch.testing.assert_close(views, expected.view(4, 6, 3, 32, 32), rtol=0, atol=1e-6)


def test_every_operation_occurs_one_to_three_times_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[list[int]] = []
    monkeypatch.setattr(augmix, "_apply", lambda x, operations, levels, negative: tables.append(operations))
    augmix_views(torch.rand(1, 3, 8, 8), 600, torch.Generator().manual_seed(1))
    assert len(tables) == 9
    counts = torch.tensor(tables).view(3, 3, 600)
    assert (counts[:, 0] >= 0).all()
    lengths = (counts >= 0).sum(dim=1).flatten()
    assert all(0.29 < (lengths == n).float().mean() < 0.37 for n in (1, 2, 3))
    shares = torch.bincount(counts[counts >= 0], minlength=9) / (counts >= 0).sum()
    assert shares.sub(1 / 9).abs().max() < 0.02


def test_views_are_seeded_differ_and_stay_in_range() -> None:
    images = LEVELS / 255
    first, again = (augmix_views(images, 5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (5, 6, 3, 32, 32)
    assert not torch.equal(first[0], first[1])
    assert first.min() >= 0
    assert first.max() <= 1
