from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.self_training.sar import Sar
from selfbench.suite.protocols.stream import Source


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _entropies(logits: Tensor) -> list[Tensor]:
    rows = [row.exp() / row.exp().sum() for row in logits]
    return [-(p * p.log()).sum() for p in rows]


def _sharp(model: nn.Module) -> nn.Module:
    """The model with a steeper classifier, so that entropies differ from image to image; in double precision."""
    model.double().train()[3][2].eval()
    noise = 1.5 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.3
    with torch.no_grad():
        model[6].weight.mul_(60.0)
        model[6].bias.sub_(model(noise).mean(0))
    return model.eval()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
@pytest.mark.parametrize(("margin", "reset_below"), [(0.5, 0.0), (0.5, 0.69), (0.01, 0.0)])
def test_steps_equal_a_loop_over_images(
    source_model: Callable[..., nn.Module],
    source: Source,
    images: Tensor,
    norm: Callable[[int], nn.Module],
    margin: float,
    reset_below: float,
) -> None:
    lr, rho = 0.05, 0.1
    method = Sar(lr=lr, margin=margin, rho=rho, reset_below=reset_below, top_share=0.0)
    method.setup(_sharp(source_model(norm)), source)
    slow = _sharp(source_model(norm)).train()
    slow[3][2].eval()
    theta = [slow[1].weight, slow[1].bias, slow[3][1].weight, slow[3][1].bias]
    start = [part.detach().clone() for part in theta]
    momentum = [torch.zeros_like(part) for part in theta]
    average, e0 = None, margin * math.log(4)
    recovered, second_sizes, first_sizes = 0, [], []
    for batch in images.double().split(10):
        logits = slow(batch)
        torch.testing.assert_close(method.predict(batch), logits.detach(), rtol=0, atol=1e-10)
        h = _entropies(logits)
        reliable = [b for b in range(10) if h[b].item() < e0]
        first_sizes.append(len(reliable))
        gradients = [torch.zeros_like(part) for part in theta]
        if reliable:
            climb = torch.autograd.grad(sum(h[b] for b in reliable) / len(reliable), theta)
            length = math.sqrt(sum((g**2).sum().item() for g in climb))
            here = [part.detach().clone() for part in theta]
            with torch.no_grad():
                for part, g in zip(theta, climb, strict=True):
                    part += rho * g / (length + 1e-12)
            h2 = _entropies(slow(batch))
            again = [b for b in reliable if h2[b].item() < e0]
            second_sizes.append(len(again))
            if again:
                loss = sum(h2[b] for b in again) / len(again)
                gradients = list(torch.autograd.grad(loss, theta))
                average = loss.item() if average is None else 0.9 * average + 0.1 * loss.item()
            with torch.no_grad():
                for part, value in zip(theta, here, strict=True):
                    part.copy_(value)
        with torch.no_grad():
            for part, m, g in zip(theta, momentum, gradients, strict=True):
                m.mul_(0.9).add_(g)
                part -= lr * m
        if average is not None and average < reset_below:
            recovered += 1
            average = None
            with torch.no_grad():
                for part, m, value in zip(theta, momentum, start, strict=True):
                    part.copy_(value)
                    m.zero_()
        assert (method.average is None) == (average is None)
        for mine, theirs in zip(method.theta, theta, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    if margin > 0.1:
        assert 0 < sum(first_sizes) < 40
        assert sum(second_sizes) > 0
    assert (recovered > 0) == (reset_below > 0)


def test_without_batch_statistics_only_reliable_images_pass_twice(stream: Callable[..., object]) -> None:
    some = stream(Sar(margin=0.97), norm=_group).counts.passes
    assert 3 * 40 < some < 6 * 40
    assert stream(Sar(margin=0.01), norm=_group).counts.passes == 3 * 40


def test_with_a_radius_of_zero_it_is_the_plain_gradient(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = Sar(lr=0.1, margin=1.0, rho=0.0, reset_below=0.0, top_share=0.0)
    method.setup(_sharp(source_model()), source)
    plain = _sharp(source_model()).train()
    plain[3][2].eval()
    x = images.double()
    loss = sum(_entropies(plain(x))) / len(x)
    (expected,) = torch.autograd.grad(loss, [plain[1].weight])
    method.predict(x)
    torch.testing.assert_close(method.theta[0], plain[1].weight - 0.1 * expected, rtol=0, atol=1e-10)
