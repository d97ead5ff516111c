from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from selfbench.methods.self_training.adamatch import AdaMatch

K = 4


def slow_step(method: Any, model: Any, labeled: Any, unlabeled: Any, state: dict[str, Any]) -> torch.Tensor:
    """`model` is a copy in training mode: batch norm sees the labelled views alone, then everything."""
    n, m = len(labeled), len(unlabeled)
    views = torch.cat([labeled.weak, labeled.strong])
    alone = functional_call(model, {name: value.clone() for name, value in model.named_buffers()}, views)
    joint = model(torch.cat([views, unlabeled.weak, unlabeled.strong]))
    r = torch.rand((2 * n, K), generator=state["generator"], dtype=torch.float64)
    z = (1 - r) * joint[: 2 * n] + r * alone
    p, q = z[:n].detach().softmax(1).tolist(), joint[2 * n : 2 * n + m].detach().softmax(1).tolist()
    state["x"] = [
        method.decay * a + (1 - method.decay) * sum(row[c] for row in p) / n for c, a in enumerate(state["x"])
    ]
    state["u"] = [*state["u"][1:], [sum(row[c] for row in q) / m for c in range(K)]]
    mean_u = [sum(row[c] for row in state["u"]) / len(state["u"]) for c in range(K)]
    limit = method.threshold * sum(map(max, p)) / n
    loss = 0.5 * F.cross_entropy(z[:n], labeled.y) + 0.5 * F.cross_entropy(z[n:], labeled.y)
    rise = 0.5 - math.cos(min(math.pi, 2 * math.pi * method.view.progress)) / 2
    state["passed"] = 0
    for row, strong in zip(q, joint[2 * n + m :], strict=True):
        scaled = [row[c] * (state["x"][c] + 1e-6) / (mean_u[c] + 1e-6) for c in range(K)]
        if max(scaled) / sum(scaled) >= limit:
            label = scaled.index(max(scaled))
            loss = loss + method.weight * rise * (strong.exp().sum().log() - strong[label]) / m
            state["passed"] += 1
    return loss


@pytest.mark.parametrize("progress", [0.1, 0.7])
def test_losses_of_several_steps_equal_a_loop(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any, progress: float
) -> None:
    method = AdaMatch(decay=0.8, window=3, weight=2.0, threshold=0.95)
    view = make_view(method, dropout_task, progress=progress)
    method.model[3].p = 0.0  # two networks would draw different masks
    state: dict[str, Any] = {"x": [1 / K] * K, "u": [[1 / K] * K] * 3}
    state["generator"] = torch.Generator()
    for step in range(5):
        labeled, unlabeled = make_batches(view)
        unlabeled.x = view.unlabeled[10 * step : 10 * step + 16]
        state["generator"].set_state(view.generator.get_state())
        model = copy.deepcopy(method.model).train()
        with view.meter.paused():
            slow = slow_step(method, model, labeled, unlabeled, state)
        expected = torch.autograd.grad(slow, list(model.parameters()))
        loss = method.loss(labeled, unlabeled)
        assert loss.item() == pytest.approx(slow.item(), abs=1e-11)
        parameters = list(method.model.parameters())
        for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        for mine, theirs in zip(method.model.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert 0 < state["passed"] < 16
        with torch.no_grad():
            for parameter, gradient in zip(parameters, expected, strict=True):
                parameter -= 0.3 * gradient


def test_the_unlabelled_loss_rises_over_the_first_half(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    values = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        method = AdaMatch(threshold=0.0)
        view = make_view(method, progress=progress)
        values.append(method.loss(*make_batches(view)).item())
    assert values[2] == values[3]
    assert values[1] - values[0] == pytest.approx((values[2] - values[0]) / 2, rel=1e-9)
    assert values[2] > values[0]
