from __future__ import annotations

import pytest
import torch

from selfbench.methods.common.moments import var_mean


@pytest.mark.parametrize(("dims", "correction"), [((2,), 1), ((0, 2, 3), 0), ((0,), 0)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_equals_torch_with_its_gradient(dims: tuple[int, ...], correction: int, format: torch.memory_format) -> None:
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 7
    x = x.contiguous(memory_format=format).requires_grad_()
    ours, theirs = var_mean(x, dims, correction), torch.var_mean(x, dim=dims, correction=correction)
    for mine, known in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, known, rtol=0, atol=1e-12)
    weights = [torch.randn_like(known) for known in theirs]
    gradients = [
        torch.autograd.grad(sum((part * w).square().sum() for part, w in zip(pair, weights, strict=True)), x)[0]
        for pair in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) + 1e4
    exact = x.double().var(dim=1)
    torch.testing.assert_close(var_mean(x, (1,), correction=1)[0].double(), exact, rtol=1e-4, atol=0)


def test_only_one_of_the_two_may_be_used() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    var_mean(x, (1,), correction=0)[0].sum().backward()
    torch.testing.assert_close(x.grad, 2 / 4 * (x - x.mean(1, keepdim=True)).detach(), rtol=0, atol=1e-14)
