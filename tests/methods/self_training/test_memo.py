from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.augmix import augmix_views
from selfbench.methods.self_training.memo import Memo, marginal_entropy
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.protocols.stream import Source


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def test_marginal_entropy_equals_a_loop() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = [(row.exp() / row.exp().sum()).tolist() for row in logits]
    mean = [sum(column) / 5 for column in zip(*p, strict=True)]
    assert math.isclose(marginal_entropy(logits).item(), -sum(q * math.log(q) for q in mean))
    impossible = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    assert marginal_entropy(impossible).item() == 0.0


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
def test_predictions_equal_a_fresh_model_per_image(
    source_model: Callable[..., nn.Module],
    source: Source,
    images: Tensor,
    norm: Callable[[int], nn.Module],
    steps: int,
) -> None:
    method = Memo(lr=0.5, views=3, steps=steps, source_weight=1.0)
    method.setup(source_model(norm), source)
    mine = method.predict(images[:4])
    generator = torch.Generator().manual_seed(0)
    moved = 0.0
    drawn = augmix_views(images[:4], 3 * steps, generator)
    for i in range(4):
        slow = source_model(norm).requires_grad_(True)
        for step in range(steps):
            views = drawn[3 * step : 3 * step + 3, i]
            p = torch.stack([slow(view[None])[0].softmax(0) for view in views]).mean(0)
            slow.zero_grad()
            (-(p * p.log()).sum()).backward()
            with torch.no_grad():
                for parameter in slow.parameters():
                    parameter -= 0.5 * parameter.grad
        with torch.no_grad():
            expected = slow(images[i : i + 1])[0]
            moved = max(moved, (expected - source_model(norm)(images[i : i + 1])[0]).abs().max().item())
        torch.testing.assert_close(mine[i], expected, rtol=0, atol=1e-5)
    assert moved > 0.01


def _mixed_norm(x: Tensor, layer: nn.BatchNorm2d, w: float) -> Tensor:
    """Normalised by the statistics of `x` with a share w of the source's, which are constants to the gradient."""
    mean, square = x.detach().mean((0, 2, 3)), (x.detach() ** 2).mean((0, 2, 3))
    mean, variance = (
        w * layer.running_mean + (1 - w) * mean, w * layer.running_var + (1 - w) * (square - mean * mean)
    )  # fmt: skip
    shape = (1, -1, 1, 1)
    scaled = (x - mean.view(shape)) / (variance + layer.eps).sqrt().view(shape)
    return scaled * layer.weight.view(shape) + layer.bias.view(shape)


@pytest.mark.parametrize("w", [0.9, 0.9411764705882353, 0.3])
def test_a_step_with_mixed_statistics_equals_one_written_out(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, w: float
) -> None:
    """As all presets have it: the views of one image are one batch, whose statistics have no gradient."""
    method = Memo(lr=0.1, views=3, source_weight=w)
    method.setup(source_model(), source)
    mine = method.predict(images[:3])
    drawn = augmix_views(images[:3], 3, torch.Generator().manual_seed(0))
    moved = 0.0
    for i in range(3):
        slow = source_model().requires_grad_(True)

        def forward(x: Tensor, net: nn.Module = slow) -> Tensor:
            x = _mixed_norm(net[0](x), net[1], w).relu()
            return net[6](net[5](net[4](_mixed_norm(net[3][0](x), net[3][1], w))))

        before = forward(images[i : i + 1]).detach()
        p = forward(drawn[:, i]).softmax(1).mean(0)
        (-(p * p.log()).sum()).backward()
        with torch.no_grad():
            for parameter in slow.parameters():
                parameter -= 0.1 * parameter.grad
            expected = forward(images[i : i + 1])
        moved = max(moved, (expected - before).abs().max().item())
        torch.testing.assert_close(mine[i : i + 1], expected, rtol=0, atol=1e-5)
    assert moved > 0.01


def test_with_a_rate_of_zero_it_is_mixed_statistics_of_single_images(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    memo, norm = Memo(lr=0.0, views=2, source_weight=0.7), Norm(source_weight=0.7)
    memo.setup(source_model(), source)
    norm.setup(source_model(), source)
    expected = torch.cat([norm.predict(image) for image in images.split(1)])
    torch.testing.assert_close(memo.predict(images), expected, rtol=0, atol=1e-6)


def test_the_source_weights_are_back_even_when_the_budget_ends_in_the_middle(
    stream: Callable[..., Any], source_model: Callable[..., nn.Module]
) -> None:
    # 21 passes: two images of ten, and one more.
    result = stream(Memo(views=3), limit=25)
    before = dict(source_model().named_parameters())
    assert len(result.logits) == 5
    assert all(torch.equal(value, before[name]) for name, value in result.method.model.named_parameters())
