from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from selfbench.methods.common import contrastive_views as module
from selfbench.methods.common.contrastive_views import strong_views, weak_views


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int = 6, side: int = 12) -> Tensor:
    return torch.rand(n, 3, side, side, generator=_generator(1), dtype=torch.float64)


def test_weak_views_are_the_image_or_its_mirror() -> None:
    images = _images(40)
    views = weak_views(images, _generator())
    kept = [torch.equal(view, image) for view, image in zip(views, images, strict=True)]
    mirrored = [torch.equal(view, image.flip(-1)) for view, image in zip(views, images, strict=True)]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True))
    assert 8 < sum(kept) < 32


def test_jitter_equals_the_changes_pixel_by_pixel() -> None:
    images = _images(5, 4)
    u = torch.rand(5, 5, 1, 1, 1, generator=_generator(2), dtype=torch.float64)
    u[0] = torch.tensor([0.1, 0.9, 0.5, 0.79, 0.81]).view(-1, 1, 1, 1)
    got = module._jitter(images, u, 1.0)

    def gray(pixel: np.ndarray) -> float:
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    for b, image in enumerate(images.numpy()):
        changed = u[0, b].item() < 0.8
        if not changed:
            torch.testing.assert_close(got[b], images[b], rtol=0, atol=1e-12)
            continue
        br, co, sa = (1 + 0.4 * (2 * u[i, b].item() - 1) for i in (1, 2, 3))
        turn = 0.1 * (2 * u[4, b].item() - 1)
        x = np.clip(image * br, 0, 1).reshape(3, -1).T
        mean = np.mean([gray(pixel) for pixel in x])
        x = np.clip(co * x + (1 - co) * mean, 0, 1)
        x = np.array([np.clip(sa * pixel + (1 - sa) * gray(pixel), 0, 1) for pixel in x])
        for i, pixel in enumerate(x):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            x[i] = colorsys.hsv_to_rgb((h + turn) % 1.0, s, v)
        assert np.abs(got[b].numpy().reshape(3, -1).T - x).max() < 1e-9


def test_blur_is_a_normalised_gaussian_of_each_image() -> None:
    images = torch.zeros(3, 3, 15, 15, dtype=torch.float64)
    images[:, :, 7, 7] = 1.0
    sigma = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    out = module._blur(images, sigma.view(-1, 1, 1, 1))
    torch.testing.assert_close(out.sum((2, 3)), torch.ones(3, 3, dtype=torch.float64))
    for image, s in zip(out, sigma.tolist(), strict=True):
        for i in range(1, 14):
            for j in range(1, 14):
                ratio = np.exp(-((i - 7) ** 2 + (j - 7) ** 2) / (2 * s * s))
                assert image[0, i, j].item() == pytest.approx(image[0, 7, 7].item() * ratio, abs=1e-12)


def test_crop_shows_a_part_of_the_image_and_all_of_it_when_asked() -> None:
    ramp = torch.linspace(0, 1, 12, dtype=torch.float64).expand(50, 3, 12, 12)
    u = torch.rand(4, 50, generator=_generator(3), dtype=torch.float64)
    crops = module._crop(ramp, u, 0.2, 1.0, (12, 12))
    widths = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) * 12 / 11
    assert widths.min() > 0.2
    assert widths.max() <= 12 / 11
    u[0] = 1.0
    u[1] = 0.5
    torch.testing.assert_close(module._crop(ramp, u, 0.2, 1.0, (12, 12)), ramp, rtol=0, atol=1e-12)


def test_strong_views_stay_in_range_and_differ_by_image() -> None:
    images = _images(1).expand(64, -1, -1, -1)
    for min_area in (0.2, 1.0):
        views = strong_views(images, _generator(4), min_area)
        assert 0.0 <= views.min() <= views.max() <= 1.0
        assert len({round(value, 9) for value in views.mean((1, 2, 3)).tolist()}) > 50
        assert torch.equal(views, strong_views(images, _generator(4), min_area))
        gray = ((views[:, 0] - views[:, 1]).abs().amax((1, 2)) < 1e-12).double().mean().item()
        assert gray == pytest.approx(0.2, abs=0.15)


def test_gray_images_stay_gray() -> None:
    images = _images()[:, :1]
    views = strong_views(images, _generator(4), 0.5)
    assert views.shape == images.shape
    assert (views - images).abs().amax((1, 2, 3)).min() > 1e-3
