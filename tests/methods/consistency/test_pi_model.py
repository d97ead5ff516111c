from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfbench.methods.consistency.pi_model import PiModel


def _softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum()


def _slow(model: Any, labeled: Any, unlabeled: Any, weight: float, both: bool) -> Tensor:
    """One example at a time."""
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        supervised = supervised - _softmax(model(x[None])[0])[y].log()
    own, n = torch.zeros((), dtype=torch.float64), len(labeled) + len(unlabeled)
    for batch in (labeled, unlabeled):
        for first, second in zip(batch.weak, batch.weak2, strict=True):
            z, again = _softmax(model(first[None])[0]), _softmax(model(second[None])[0])
            again = again if both else again.detach()
            own = own + sum((a - b) ** 2 for a, b in zip(z, again, strict=True)) / len(z)
    return supervised / len(labeled) + weight * own / n


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("progress", "share"), [(0.1, math.exp(-5 * 0.75**2)), (0.5, 1.0)])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], both: bool, progress: float, share: float
) -> None:
    method = PiModel(weight=7.0, both=both)
    labeled, unlabeled = make_batches(make_view(method, progress=progress))
    parameters = list(method.model.parameters())
    slow = _slow(method.model, labeled, unlabeled, 7.0 * share, both)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    expected = torch.autograd.grad(slow, parameters)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_two_passes_have_dropout_of_their_own(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    """With two equal views, only dropout makes a difference."""
    values = []
    for training in (True, False):
        method = PiModel()
        labeled, unlabeled = make_batches(make_view(method, dropout_task))
        labeled.weak2, unlabeled.weak2 = labeled.weak, unlabeled.weak
        method.model[3].train(training)
        own = method.loss(labeled, unlabeled)
        method.weight = 0.0
        method.model[3].eval()
        values.append(own.item() - method.loss(labeled, unlabeled).item())
    assert abs(values[0]) > 1e-4
    assert values[1] == 0.0
