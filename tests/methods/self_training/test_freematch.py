from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfbench.methods.self_training.freematch import FreeMatch

K = 4


def slow_step(model: Any, labeled: Any, unlabeled: Any, state: dict[str, Any], method: Any) -> torch.Tensor:
    decay = method.decay
    supervised = sum(
        (z.exp().sum().log() - z[y]) / len(labeled)
        for z, y in ((model(x[None])[0], int(y)) for x, y in zip(labeled.weak, labeled.y, strict=True))
    )
    q = [model(x[None])[0].softmax(0).tolist() for x in unlabeled.weak]
    n = len(q)
    state["tau"] = min(method.cap, decay * state["tau"] + (1 - decay) * sum(map(max, q)) / n)
    for c in range(K):
        state["p"][c] = decay * state["p"][c] + (1 - decay) * sum(row[c] for row in q) / n
        share = sum(row.index(max(row)) == c for row in q) / n
        state["h"][c] = decay * state["h"][c] + (1 - decay) * share
    limit = [state["tau"] * value / max(state["p"]) for value in state["p"]]
    own, chosen = torch.zeros((), dtype=torch.float64), []
    for row, x in zip(q, unlabeled.strong, strict=True):
        label = row.index(max(row))
        if max(row) >= limit[label]:
            z = model(x[None])[0]
            own = own + (z.exp().sum().log() - z[label]) / n
            chosen.append(z.softmax(0))
    state["chosen"] = len(chosen)
    fairness = torch.zeros((), dtype=torch.float64)
    if chosen:
        wanted = [p / h for p, h in zip(state["p"], state["h"], strict=True)]
        wanted = [value / sum(wanted) for value in wanted]
        shares = [sum(int(row.argmax()) == c for row in chosen) / len(chosen) for c in range(K)]
        mean = sum(chosen) / len(chosen)
        ratio = [mean[c] / shares[c] if shares[c] else torch.zeros(()) for c in range(K)]
        total = sum(ratio)
        fairness = sum(wanted[c] * (ratio[c] / total + 1e-12).log() for c in range(K))
    return supervised + method.weight * (own + method.fairness * fairness)


@pytest.mark.parametrize("cap", [1.0, 0.5])
def test_losses_of_several_steps_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], cap: float
) -> None:
    method = FreeMatch(decay=0.9, weight=2.0, fairness=0.1, cap=cap)
    view = make_view(method)
    state: dict[str, Any] = {"tau": 1 / K, "p": [1 / K] * K, "h": [1 / K] * K}
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
        assert method.tau.item() == pytest.approx(state["tau"], abs=1e-12)
        assert method.mean_q.tolist() == pytest.approx(state["p"], abs=1e-12)
        assert method.histogram.tolist() == pytest.approx(state["h"], abs=1e-12)
        assert state["chosen"] > 0
        with torch.no_grad():
            for parameter, gradient in zip(parameters, expected, strict=True):
                parameter -= 0.5 * gradient


def test_where_nothing_passes_fairness_is_zero_and_has_no_gradient(make_view: Callable[..., Any]) -> None:
    method = FreeMatch()
    make_view(method)
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    value = method.fairness_loss(logits, torch.zeros(6, dtype=torch.bool))
    assert value.item() == 0.0
    [gradient] = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all()
    assert not gradient.any()


def test_fairness_is_least_where_the_mean_prediction_is_as_even_as_its_histogram(
    make_view: Callable[..., Any],
) -> None:
    """Minimising L_f drives the ratio of one class apart from the wanted one: its value is minus a cross-entropy."""
    method = FreeMatch()
    make_view(method)
    logits = torch.zeros(4, K, dtype=torch.float64).fill_diagonal_(3.0)
    value = method.fairness_loss(logits, torch.ones(4, dtype=torch.bool))
    assert value.item() == pytest.approx(math.log(1 / K), abs=1e-9)
