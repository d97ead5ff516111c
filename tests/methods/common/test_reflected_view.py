from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as slow

from selfbench.methods.common.reflected_view import reflected_view, render_reflected
from selfbench.methods.common.views import draw_views


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_views_equal_the_chain_of_single_transforms(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, height, width, generator=generator)
    for view in draw_views(8, height, width, generator):
        x = images
        for change in view.order:
            if change == 0:
                x = slow.adjust_brightness(x, view.brightness)
            elif change == 1:
                x = slow.adjust_contrast(x, view.contrast)
            elif change == 2:
                x = slow.adjust_saturation(x, view.saturation)
            elif change == 3:
                x = slow.adjust_hue(x, view.hue)
            else:
                x = slow.adjust_gamma(x.clamp(1e-8, 1.0), view.gamma)
        x = slow.pad(x, [width // 2, height // 2], padding_mode="reflect")
        x = slow.affine(
            x, view.angle, list(view.shift), view.scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR, fill=0
        )
        x = slow.center_crop(x, [height, width])
        x = (slow.horizontal_flip(x) if view.flip else x).clamp(0.0, 1.0)
        mine = render_reflected(images, view, generator)
        torch.testing.assert_close(mine, x, rtol=0, atol=2e-5)


def test_a_view_that_changes_nothing_is_the_image() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    (view,) = draw_views(1, 8, 8, generator)
    same = dataclasses.replace(view, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, gamma=1.0, angle=0.0,
                               scale=1.0, shift=(0, 0), flip=False)  # fmt: skip
    torch.testing.assert_close(render_reflected(images, same, generator), images, rtol=0, atol=1e-5)


def test_equal_seeds_give_equal_views_and_others_differ() -> None:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    first, again, other = (reflected_view(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
