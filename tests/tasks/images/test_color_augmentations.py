"""Each operation beside Pillow on single 8-bit pictures, and the draws beside what the paper says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from selfbench.tasks.images import color_augmentations as augment

MAGNITUDES = torch.tensor([0.0, 0.1, 0.37, 0.5, 0.81, 0.999])
SHARE = len(MAGNITUDES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = SHARE, height: int = 32, width: int = 32) -> Tensor:
    """(n, 3, H, W) of 8-bit values: noise over a ramp of few levels, so that histograms have gaps."""
    random = np.random.default_rng(1)
    ramp = np.linspace(30, 190, width).astype(int)[None, None, None, :]
    values = np.clip(ramp + random.integers(-25, 26, (n, 3, height, width)), 0, 255)
    return torch.from_numpy(values).float() / 255


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())


def back(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def factor(magnitude: float) -> float:
    return 0.05 + 0.9 * magnitude


VALUES: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float]] = {
    "autocontrast": (lambda image, m: ImageOps.autocontrast(image), 1.01),
    "equalize": (lambda image, m: ImageOps.equalize(image), 0.01),
    "brightness": (lambda image, m: ImageEnhance.Brightness(image).enhance(factor(m)), 1.01),
    "color": (lambda image, m: ImageEnhance.Color(image).enhance(factor(m)), 2.01),
    "contrast": (lambda image, m: ImageEnhance.Contrast(image).enhance(factor(m)), 2.01),
    "sharpness": (lambda image, m: ImageEnhance.Sharpness(image).enhance(factor(m)), 2.01),
    "posterize": (lambda image, m: ImageOps.posterize(image, int(4 + 4 * m)), 0.01),
    "solarize": (lambda image, m: ImageOps.solarize(image, 256 * m), 0.01),
}
"""The operation in Pillow, and how many of the 255 levels its rounding may be away."""


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_an_operation_on_values_is_that_of_pillow(name: str, shape: tuple[int, int]) -> None:
    slow, levels = VALUES[name]
    images = pictures(SHARE, *shape)
    fast = augment.VALUES[name](images.clone(), MAGNITUDES.view(-1, 1, 1, 1))
    for image, result, magnitude in zip(images, fast, MAGNITUDES.tolist(), strict=True):
        expected = back(slow(pillow(image), magnitude))
        assert (result - expected).abs().max() <= levels / 255
        assert not torch.equal(expected, image) or (name == "solarize" and magnitude > 0.9)


def test_every_operation_of_the_pool_is_there() -> None:
    assert set(augment.POOL) == {
        *augment.VALUES,
        "identity",
        "rotate",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
    }
    assert len(augment.POOL) == 14
    assert set(augment.POOL[1:9]) == set(VALUES)


def test_a_channel_of_one_value_survives_stretching_and_equalizing() -> None:
    flat = torch.full((2, 3, 8, 8), 0.4)
    assert torch.equal(augment.autocontrast(flat), flat)
    assert torch.equal(augment.equalize(flat), flat)


def slow_move(image: Image.Image, name: str, strength: float) -> Image.Image:
    width, height = image.size
    affine = Image.Transform.AFFINE
    if name == "rotate":
        return image.rotate(30 * strength)
    if name == "shear_x":
        return image.transform(image.size, affine, (1, 0.3 * strength, 0, 0, 1, 0))
    if name == "shear_y":
        return image.transform(image.size, affine, (1, 0, 0, 0.3 * strength, 1, 0))
    if name == "translate_x":
        return image.transform(image.size, affine, (1, 0, 0.3 * strength * width, 0, 1, 0))
    return image.transform(image.size, affine, (1, 0, 0, 0, 1, 0.3 * strength * height))


def test_a_movement_is_that_of_pillow() -> None:
    # Magnitudes at which no sample falls exactly between two pixels.
    strengths = 2 * torch.tensor([0.013, 0.1, 0.37, 0.61, 0.81, 0.987]) - 1
    moving = augment.POOL[-5:]
    images = pictures(len(moving) * SHARE)
    fast = augment.move(images, augment.inverse_maps(strengths.repeat(len(moving)), SHARE))
    for number, name in enumerate(moving):
        for row, strength in enumerate(strengths.tolist()):
            image = images[number * SHARE + row]
            expected = back(slow_move(pillow(image), name, strength))
            wrong = (fast[number * SHARE + row] - expected).abs().amax(dim=0) > 1e-3
            assert wrong.float().mean() <= 0.002, (name, strength)


def test_sharpness_smooths_as_the_filter_of_pillow() -> None:
    # Factor 0.05 is all but the filter itself.
    image = pictures(1)
    smooth = back(pillow(image[0]).filter(ImageFilter.SMOOTH))
    result = augment.sharpness(image, torch.zeros(1, 1, 1, 1))[0]
    assert (result - torch.lerp(smooth, image[0], 0.05)).abs().max() < 1.5 / 255


def slow_weak(image: Tensor, down: int, across: int, mirrored: bool) -> Tensor:
    height, width = image.shape[1:]
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    crop = padded[:, 4 + down : 4 + down + height, 4 + across : 4 + across + width]
    return torch.from_numpy(crop[:, :, ::-1].copy() if mirrored else crop.copy())


def test_a_weak_view_is_a_crop_of_the_reflected_picture_or_its_mirror_image() -> None:
    images = pictures(1).expand(400, -1, -1, -1)
    views = augment.weak_view(images, generator())
    known = {
        slow_weak(images[0], down, across, mirrored).numpy().tobytes(): (down, across, mirrored)
        for down in range(-4, 5)
        for across in range(-4, 5)
        for mirrored in (False, True)
    }
    found = [known[view.numpy().tobytes()] for view in views.contiguous()]
    downs, acrosses, mirrors = (set(column) for column in zip(*found, strict=True))
    assert downs == acrosses == set(range(-4, 5))
    assert mirrors == {False, True}
    assert 160 < sum(mirrored for _, _, mirrored in found) < 240
    unflipped = augment.weak_view(images[:50], generator(), flip=False)
    assert not any(known[view.numpy().tobytes()][2] for view in unflipped.contiguous())


def test_the_range_of_a_weak_view_grows_with_the_picture() -> None:
    images = torch.arange(96).view(1, 1, 1, 96).expand(1000, 3, 4, 96) / 96.0
    views = augment.weak_view(images, generator(), flip=False)
    middle = (96 * views[:, 0, 0, 48]).round() - 48
    assert set(middle.int().tolist()) == set(range(-12, 13))


def test_each_image_gets_each_operation_with_the_same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operation k adds its number to the images, so that the sum tells which were met."""
    batch, rounds = 20, 600

    def numbers(images: Tensor, magnitude: Tensor, share: int) -> Tensor:
        return images + torch.arange(14.0).repeat_interleave(share).view(-1, 1, 1, 1)

    monkeypatch.setattr(augment, "_apply", numbers)
    images, draw = 100.0 * torch.arange(batch).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), generator()
    counts = torch.zeros(batch, 14)
    for _ in range(rounds):
        met = augment.rand_augment(images, draw, operations=1)[:, 0, 0, 0] - images[:, 0, 0, 0]
        # No image is exchanged for another, and no operation is met by more than its share, rounded up.
        assert met.min() >= 0
        assert met.max() <= 13
        assert torch.bincount(met.long(), minlength=14).max() <= 2
        counts[torch.arange(batch), met.long()] += 1
    expected = rounds / 14
    chi_square = ((counts - expected) ** 2 / expected).sum(dim=1)
    assert chi_square.max() < 45  # 13 degrees of freedom; 34.5 has the p-value 0.001, and twenty are looked at
    pairs = augment.rand_augment(images, draw, operations=2)[:, 0, 0, 0] - images[:, 0, 0, 0]
    assert 0 <= pairs.min() <= pairs.max() <= 26


def test_magnitudes_fill_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(images: Tensor, magnitude: Tensor, share: int) -> Tensor:
        seen.append(magnitude)
        return images

    monkeypatch.setattr(augment, "_apply", record)
    augment.rand_augment(pictures(700, 4, 4), generator(), operations=2)
    assert len(seen) == 2
    for magnitude in seen:
        assert 0 <= magnitude.min() < 0.01
        assert 0.99 < magnitude.max() < 1
    assert not torch.equal(*seen)


def test_cutout_covers_a_grey_square_of_up_to_half_of_the_width() -> None:
    images = torch.zeros(500, 3, 32, 32)
    holes = augment.cutout(images, generator())
    covered = holes[:, 0] == 0.5
    assert torch.equal(holes, 0.5 * covered[:, None].float().expand(-1, 3, -1, -1))
    heights, widths = covered.any(dim=2).sum(dim=1), covered.any(dim=1).sum(dim=1)
    assert torch.equal(covered.sum(dim=(1, 2)), heights * widths)
    assert heights.max() == widths.max() == 16
    inside = (~covered[:, [0, -1]].any(dim=(1, 2))) & (~covered[:, :, [0, -1]].any(dim=(1, 2)))
    assert ((heights - widths).abs()[inside] <= 1).all()
    assert inside.sum() > 200


@pytest.mark.parametrize("batch", [1, 3, 16, 45])
@pytest.mark.parametrize("view", [augment.weak_view, augment.strong_view])
def test_views_stay_in_range_and_depend_on_the_generator_alone(view: Callable[..., Tensor], batch: int) -> None:
    images = pictures(batch)
    before = images.clone()
    first, again, other = view(images, generator(3)), view(images, generator(3)), view(images, generator(4))
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6
    assert torch.isfinite(first).all()
    torch.manual_seed(0)
    assert torch.equal(view(images, generator(3)), first)


def test_an_empty_batch_stays_empty() -> None:
    assert augment.strong_view(torch.empty(0, 3, 32, 32), generator()).shape == (0, 3, 32, 32)
