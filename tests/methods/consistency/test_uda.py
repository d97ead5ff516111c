from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfbench.methods.consistency.uda import Uda, annealed


def _slow(method: Uda, labeled: Any, unlabeled: Any, eta: float) -> tuple[Tensor, int, int]:
    """One example at a time; the loss, and how many unlabelled and labelled examples counted."""
    model, used, kept = method.model, 0, 0
    supervised, own = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        p = model(x[None])[0].softmax(0)
        if p[y].item() <= eta:
            supervised = supervised - p[y].log()
            used += 1
    for weak, strong in zip(unlabeled.weak, unlabeled.strong, strict=True):
        with torch.no_grad():
            p = model(weak[None])[0].softmax(0).tolist()
        if max(p) < method.threshold:
            continue
        raised = [a ** (1 / method.temperature) for a in p]
        q = [a / sum(raised) for a in raised]
        z = model(strong[None])[0]
        own = own - sum(a * (b - z.exp().sum().log()) for a, b in zip(q, z, strict=True))
        kept += 1
    return supervised / max(used, 1) + method.weight * own / len(unlabeled), kept, used


@pytest.mark.parametrize(
    ("changes", "eta"),
    [
        ({}, 1.0),
        ({"temperature": 1.0, "weight": 3.0}, 1.0),
        # K = 4, half of the budget used
        ({"annealing": "linear"}, 0.5 * 0.75 + 0.25),
        ({"annealing": "exp"}, math.exp(-2.5) * 0.75 + 0.25),
        ({"annealing": "log"}, (1 - math.exp(-2.5)) * 0.75 + 0.25),
    ],
)
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], changes: Any, eta: float
) -> None:
    method = Uda(threshold=0.9, **changes)
    labeled, unlabeled = make_batches(make_view(method))
    with torch.no_grad():
        method.model[-1].weight.mul_(30)
        right = method.model(labeled.weak).argmax(1)
    # Half of the labels are predicted with confidence, so that annealing leaves some out.
    labeled.y = torch.where(torch.arange(len(right)) % 2 == 0, right, (right + 1) % 4)
    slow, kept, used = _slow(method, labeled, unlabeled, eta)
    assert 0 < kept < len(unlabeled)
    assert 0 < used < len(labeled) or eta == 1.0
    parameters = list(method.model.parameters())
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_annealing_leaves_some_out_or_all(make_view: Callable[..., Any], make_batches: Callable[..., Any]) -> None:
    method = Uda(threshold=1.0, annealing="linear")
    labeled, unlabeled = make_batches(make_view(method, progress=0.0))
    _, _, used = _slow(method, labeled, unlabeled, 0.25)
    assert 0 < used < len(labeled)
    for last, right in ((100.0, True), (0.0, False)):
        with torch.no_grad():
            method.model[-1].weight.zero_()
            method.model[-1].bias.copy_(torch.tensor([last, 0.0, 0.0, 0.0]))
        labeled.y = torch.zeros_like(labeled.y)
        expected = 0.0 if right else math.log(4)
        assert method.loss(labeled, unlabeled).item() == pytest.approx(expected, abs=1e-12)


def test_the_temperature_changes_the_loss_and_its_limit_is_a_hard_label(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    values = {}
    for temperature in (1.0, 0.4, 1e-4):
        method = Uda(threshold=0.0)
        method.temperature = temperature
        labeled, unlabeled = make_batches(make_view(method))
        values[temperature] = method.loss(labeled, unlabeled).item()
    hard = F.cross_entropy(method.model(unlabeled.strong), method.model(unlabeled.weak).argmax(1)) + F.cross_entropy(
        method.model(labeled.weak), labeled.y
    )
    assert values[1e-4] == pytest.approx(hard.item(), abs=1e-6)
    assert abs(values[1.0] - values[0.4]) > 1e-3
    assert abs(values[0.4] - values[1e-4]) > 1e-3


@pytest.mark.parametrize("schedule", ["linear", "log", "exp"])
def test_schedules_rise_from_chance_to_one(schedule: str) -> None:
    values = [annealed(schedule, step / 20, 10) for step in range(21)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.1, abs=0.9 * math.exp(-5) + 1e-12)
    assert values[-1] == pytest.approx(1.0, abs=0.9 * math.exp(-5) + 1e-12)
    if schedule != "linear":
        assert (values[10] > 0.55) == (schedule == "log")


def test_all_views_pass_as_one_batch(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    method = Uda()
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    views = torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong])
    expected = 0.1 * method.model[0](views).detach().mean(0)
    method.loss(labeled, unlabeled)
    torch.testing.assert_close(method.model[1].running_mean, expected, rtol=0, atol=1e-12)
