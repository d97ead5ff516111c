from __future__ import annotations

import colorsys
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from selfbench.methods.common.views import View, draw_views, random_views, render_views

NEUTRAL = View(1.0, 1.0, 1.0, 0.0, 1.0, (0, 1, 2, 3, 4), 0.0, 1.0, (0, 0), 0.001, False)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gray(pixel: np.ndarray) -> float:
    return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def _colour(image: np.ndarray, view: View, kind: int) -> np.ndarray:
    """One colour change of one image (3, H, W), pixel by pixel."""
    out = np.empty_like(image)
    places = [(i, j) for i in range(image.shape[1]) for j in range(image.shape[2])]
    mean = sum(_gray(image[:, i, j]) for i, j in places) / len(places)
    for i, j in places:
        pixel = image[:, i, j]
        if kind == 0:
            changed = view.brightness * pixel
        elif kind == 1:
            changed = view.contrast * pixel + (1 - view.contrast) * mean
        elif kind == 2:
            changed = view.saturation * pixel + (1 - view.saturation) * _gray(pixel)
        elif kind == 3:
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            changed = np.array(colorsys.hsv_to_rgb((h + view.hue) % 1.0, s, v))
        else:
            changed = np.maximum(pixel, 1e-8) ** view.gamma
        out[:, i, j] = np.clip(changed, 0.0, 1.0)
    return out


def _warped(padded: np.ndarray, view: View) -> np.ndarray:
    """Rotate, scale and shift about the centre, bilinearly, zero beyond the padded image."""
    _, height, width = padded.shape
    out = np.zeros_like(padded)
    turn = math.radians(view.angle)
    for i in range(height):
        for j in range(width):
            x, y = j + 0.5 - width / 2 - view.shift[0], i + 0.5 - height / 2 - view.shift[1]
            sx = (math.cos(turn) * x + math.sin(turn) * y) / view.scale + width / 2 - 0.5
            sy = (-math.sin(turn) * x + math.cos(turn) * y) / view.scale + height / 2 - 0.5
            for row in (math.floor(sy), math.floor(sy) + 1):
                for column in (math.floor(sx), math.floor(sx) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(sy - row)) * (1 - abs(sx - column))
                        out[:, i, j] += share * padded[:, row, column]
    return out


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """A 5 x 5 window, at once; the border is cut off afterwards."""
    window = np.array([[math.exp(-(a * a + b * b) / (2 * sigma**2)) for b in range(-2, 3)] for a in range(-2, 3)])
    window /= window.sum()
    out = np.zeros_like(image)
    for i in range(2, image.shape[1] - 2):
        for j in range(2, image.shape[2] - 2):
            out[:, i, j] = (image[:, i - 2 : i + 3, j - 2 : j + 3] * window).sum(axis=(1, 2))
    return out


def _slow(image: np.ndarray, view: View) -> np.ndarray:
    """The pipeline in the order of the paper's release, one image at a time, without noise."""
    for kind in view.order:
        image = _colour(image, view, kind)
    _, height, width = image.shape
    top, left = height // 2, width // 2
    image = np.pad(image, ((0, 0), (top, top), (left, left)), mode="edge")
    image = _blurred(_warped(image, view), view.sigma)[:, top : top + height, left : left + width]
    return np.clip(image[:, :, ::-1] if view.flip else image, 0.0, 1.0)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (17, 20)])
def test_views_equal_the_pipeline_pixel_by_pixel(shape: tuple[int, int], soft: bool) -> None:
    images = torch.rand(2, 3, *shape, generator=_generator(3), dtype=torch.float64)
    images[0, :, :2] = 0.3  # gray pixels have no hue
    images[0, 1] = images[0, 0]  # two equal largest colours
    views = draw_views(6, *shape, _generator(4), soft=soft)
    views.append(dataclasses.replace(NEUTRAL, angle=15.0, scale=0.9, shift=(1, -1), sigma=0.5, flip=True))
    fast = render_views(images, views, _generator(), gaussian_std=0.0)
    for view, made in zip(views, fast, strict=True):
        for image, got in zip(images, made, strict=True):
            # Blur weights below 2^-25 are left out.
            assert np.abs(got.numpy() - _slow(image.numpy(), view)).max() < 2e-7


def test_single_precision_stays_within_rounding() -> None:
    images = torch.rand(4, 3, 32, 32, generator=_generator(5))
    views = draw_views(20, 32, 32, _generator(6))
    single = render_views(images, views, _generator(), gaussian_std=0.0)
    double = render_views(images.double(), views, _generator(), gaussian_std=0.0)
    assert (single - double).abs().max() < 1e-5


def test_views_equal_torchvision_on_the_same_draws() -> None:
    pytest.importorskip("torchvision")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    images = torch.rand(3, 3, 32, 32, generator=_generator(5))
    for view in draw_views(10, 32, 32, _generator(8)):
        x: Tensor = images
        for kind in view.order:
            if kind == 0:
                x = tv.adjust_brightness(x, view.brightness)
            elif kind == 1:
                x = tv.adjust_contrast(x, view.contrast)
            elif kind == 2:
                x = tv.adjust_saturation(x, view.saturation)
            elif kind == 3:
                x = tv.adjust_hue(x, view.hue)
            else:
                x = tv.adjust_gamma(x.clamp(1e-8, 1.0), view.gamma)
        x = tv.pad(x, [16] * 4, padding_mode="edge")
        x = tv.affine(x, view.angle, list(view.shift), view.scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        x = tv.center_crop(tv.gaussian_blur(x, [5, 5], [view.sigma] * 2), [32, 32])
        x = tv.hflip(x) if view.flip else x
        fast = render_views(images, [view], _generator(), gaussian_std=0.0)[0]
        assert (fast - x).abs().max() < 2e-5


def test_all_views_at_once_as_on_a_gpu_equal_one_at_a_time() -> None:
    from selfbench.methods.common import views as module

    images = torch.rand(3, 3, 16, 16, generator=_generator(1), dtype=torch.float64)
    views = draw_views(8, 16, 16, _generator(2))
    together = torch.empty(8, 3, 3, 16, 16, dtype=torch.float64)
    module._render(images, views, together)
    single = render_views(images, views, _generator(), gaussian_std=0.0)
    assert (together.clamp(0.0, 1.0) - single).abs().max() < 1e-7


def test_the_neutral_view_is_the_image_and_noise_has_its_deviation() -> None:
    images = torch.rand(20, 3, 16, 16, generator=_generator(1), dtype=torch.float64) * 0.8 + 0.1
    torch.testing.assert_close(render_views(images, [NEUTRAL], _generator(), gaussian_std=0.0)[0], images)
    noise = render_views(images, [NEUTRAL], _generator(), gaussian_std=0.01)[0] - images
    assert noise.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(noise.mean().item()) < 5e-4


def test_splitting_the_views_changes_nothing() -> None:
    images = torch.rand(2, 3, 8, 8, generator=_generator(1))
    whole = random_views(images, _generator(9), n=5)
    generator = _generator(9)
    views = draw_views(5, 8, 8, generator)
    parts = [render_views(images, views[:2], generator), render_views(images, views[2:], generator)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == (5, 2, 3, 8, 8)
    assert 0.0 <= whole.min() <= whole.max() <= 1.0
    assert not torch.equal(random_views(images, _generator(10), n=5), whole)


@pytest.mark.parametrize("soft", [False, True])
def test_draws_fill_the_published_ranges(soft: bool) -> None:
    views = draw_views(4000, 32, 32, _generator(0), soft=soft)
    half = 0.5 if soft else 1.0
    ranges = {
        "brightness": (1 - 0.4 * half, 1 + 0.4 * half), "contrast": (1 - 0.3 * half, 1 + 0.3 * half),
        "saturation": (1 - 0.5 * half, 1 + 0.5 * half), "hue": (-0.06 * half, 0.06 * half),
        "gamma": (1 - 0.3 * half, 1 + 0.3 * half), "angle": (-8.0, 8.0) if soft else (-15.0, 15.0),
        "scale": (1 - 0.1 * half, 1 + 0.1 * half), "sigma": (0.001, 0.25 if soft else 0.5),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        values = np.array([getattr(view, name) for view in views])
        assert low <= values.min() <= low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) <= values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    shifts = np.array([view.shift for view in views])
    assert set(shifts.flatten().tolist()) == set(range(-4, 5))
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.03)
    assert len({view.order for view in views}) == math.factorial(5)


def test_gray_images_have_the_views_of_their_coloured_copies_without_saturation_and_hue() -> None:
    images = torch.rand(3, 1, 16, 16, generator=_generator(1), dtype=torch.float64)
    views = draw_views(6, 16, 16, _generator(2))
    gray = render_views(images, views, _generator(), gaussian_std=0.0)
    plain = [dataclasses.replace(view, saturation=1.0, hue=0.0) for view in views]
    coloured = render_views(images.expand(-1, 3, -1, -1), plain, _generator(), gaussian_std=0.0)
    # The weights of gray add up to 0.9999.
    assert (gray - coloured.mean(2, keepdim=True)).abs().max() < 1e-4
    assert gray.shape == (6, 3, 1, 16, 16)
