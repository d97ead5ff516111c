from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfbench.methods.self_training.softmatch import SoftMatch

K = 4


def slow_step(model: Any, labeled: Any, unlabeled: Any, state: dict[str, Any], method: Any) -> torch.Tensor:
    m = method.decay
    loss = sum(
        (z.exp().sum().log() - z[y]) / len(labeled)
        for z, y in ((model(x[None])[0], int(y)) for x, y in zip(labeled.weak, labeled.y, strict=True))
    )
    q = [model(x[None])[0].softmax(0).tolist() for x in unlabeled.weak]
    n = len(q)
    mean = [sum(row[c] for row in q) / n for c in range(K)]
    state["q"] = mean if state["q"] is None else [m * a + (1 - m) * b for a, b in zip(state["q"], mean, strict=True)]
    top = []
    for row in q:
        scaled = [row[c] * (1 / K + 1e-6) / (state["q"][c] + 1e-6) for c in range(K)]
        top.append(max(scaled) / sum(scaled))
    state["mu"] = m * state["mu"] + (1 - m) * sum(top) / n
    state["var"] = m * state["var"] + (1 - m) * statistics.variance(top)
    state["weights"] = []
    for row, a, x in zip(q, top, unlabeled.strong, strict=True):
        weight = math.exp(-(min(a - state["mu"], 0.0) ** 2) / (2 * state["var"] / method.sigmas**2))
        state["weights"].append(weight)
        z = model(x[None])[0]
        loss = loss + method.weight * weight * (z.exp().sum().log() - z[row.index(max(row))]) / n
    return loss


def test_losses_of_several_steps_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = SoftMatch(decay=0.3, weight=2.0)
    view = make_view(method)
    state: dict[str, Any] = {"q": None, "mu": 1 / K, "var": 1.0}
    parameters = list(method.model.parameters())
    for step in range(4):
        labeled, unlabeled = make_batches(view)
        unlabeled.x = view.unlabeled[12 * step : 12 * step + 16]
        slow = slow_step(method.model, labeled, unlabeled, state, method)
        expected = torch.autograd.grad(slow, parameters)
        loss = method.loss(labeled, unlabeled)
        assert loss.item() == pytest.approx(slow.item(), abs=1e-11)
        for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)
        assert method.mu.item() == pytest.approx(state["mu"], abs=1e-12)
        assert method.variance.item() == pytest.approx(state["var"], abs=1e-12)
        assert min(state["weights"]) < 1.0 == max(state["weights"])
        with torch.no_grad():
            for parameter, gradient in zip(parameters, expected, strict=True):
                parameter -= 0.5 * gradient


def test_weights_by_hand(make_view: Callable[..., Any]) -> None:
    """Predictions whose mean is uniform are their own alignment; above the mean the weight is 1."""
    method = SoftMatch(decay=0.0)
    make_view(method)
    rows = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.4, 0.4]])
    weights = method.weights(rows.double())
    mean, variance = (0.7 + 0.7 + 0.4 + 0.4) / 4, 4 * 0.15**2 / 3
    assert weights[:2].tolist() == [1.0, 1.0]
    assert weights[2].item() == pytest.approx(math.exp(-((0.4 - mean) ** 2) / (2 * variance / 4)), abs=1e-5)


def test_a_single_unlabelled_example_leaves_the_variance(make_view: Callable[..., Any]) -> None:
    method = SoftMatch()
    make_view(method)
    assert torch.isfinite(method.weights(torch.full((1, K), 0.25, dtype=torch.float64))).all()
    assert method.variance.item() == 1.0
