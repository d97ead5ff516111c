from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.alignment.afn import Afn


def _norms(model: Any, inputs: Tensor) -> list[Tensor]:
    return [(nn.Sequential(*list(model)[:-1])(x[None])[0] ** 2).sum().sqrt() for x in inputs]


@pytest.mark.parametrize(("kind", "value"), [("stepwise", 0.7), ("hard", 2.5)])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], kind: str, value: float
) -> None:
    method = Afn(kind=kind, weight=0.5, step=0.7, radius=2.5)
    labeled, unlabeled = make_batches(make_view(method))
    parameters = list(method.model.parameters())
    slow = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        z = method.model(x[None])[0]
        slow = slow + (z.exp().sum().log() - z[y]) / len(labeled)
    for inputs in (labeled.weak, unlabeled.weak):
        norms = _norms(method.model, inputs)
        if kind == "stepwise":
            slow = slow + 0.5 * sum((n - (n.item() + value)) ** 2 for n in norms) / len(norms)
        else:
            slow = slow + 0.5 * (sum(norms) / len(norms) - value) ** 2
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    expected = torch.autograd.grad(slow, parameters)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_gradient_in_closed_form() -> None:
    """Stepwise: -2 step h / (B ||h||); hard: 2 (mean - radius) h / (B ||h||)."""
    h = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    unit = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    value = Afn(step=1.5)._norm_loss(h)
    assert value.item() == pytest.approx(2.25, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, h)[0], -2 * 1.5 * unit / 2, rtol=0, atol=1e-12)
    value = Afn(kind="hard", radius=5.0)._norm_loss(h)
    assert value.item() == pytest.approx((3.5 - 5.0) ** 2, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, h)[0], 2 * (3.5 - 5.0) * unit / 2, rtol=0, atol=1e-12)


def test_a_feature_of_zeros_has_a_finite_gradient() -> None:
    h = torch.zeros(2, 3, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(Afn()._norm_loss(h), h)[0]).all()


def test_each_side_passes_by_itself(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    method = Afn()
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    means = [method.model[0](view).detach().mean(0) for view in (labeled.weak, unlabeled.weak)]
    method.loss(labeled, unlabeled)
    expected = 0.9 * 0.1 * means[0] + 0.1 * means[1]
    torch.testing.assert_close(method.model[1].running_mean, expected, rtol=0, atol=1e-12)
