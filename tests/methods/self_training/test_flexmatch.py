from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfbench.methods.self_training.flexmatch import FlexMatch


def slow_thresholds(kept: dict[int, int], pool: int, classes: int, tau: float) -> list[float]:
    """From a dictionary: example -> the last class it was confidently given."""
    counts = [sum(label == c for label in kept.values()) for c in range(classes)]
    most = max(*counts, pool - len(kept))
    return [tau * (n / most) / (2 - n / most) for n in counts]


def slow_step(method: Any, labeled: Any, unlabeled: Any, kept: dict[int, int], tau: float, weight: float) -> Tensor:
    model = method.model
    loss = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        z = model(x[None])[0]
        loss = loss + (z.exp().sum().log() - z[y]) / len(labeled)
    limits = slow_thresholds(kept, len(method.view.unlabeled), 4, tau)
    for weak, strong in zip(unlabeled.weak, unlabeled.strong, strict=True):
        q = model(weak[None])[0].softmax(0).tolist()
        label = q.index(max(q))
        if max(q) >= limits[label]:
            z = model(strong[None])[0]
            loss = loss + weight * (z.exp().sum().log() - z[label]) / len(unlabeled)
    for index, weak in zip(unlabeled.index.tolist(), unlabeled.weak, strict=True):
        q = model(weak[None])[0].softmax(0).tolist()
        if max(q) >= tau:
            kept[index] = q.index(max(q))
    return loss


@pytest.mark.parametrize("tau", [0.35, 0.45])
def test_losses_of_several_steps_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], tau: float
) -> None:
    method = FlexMatch(threshold=tau, weight=2.0)
    view = make_view(method)
    kept: dict[int, int] = {}
    parameters = list(method.model.parameters())
    for step in range(5):
        labeled, unlabeled = make_batches(view)
        unlabeled.index = (torch.arange(16) + 12 * step) % len(view.unlabeled)
        # A batch may hold the end of one pass over the pool and the beginning of the next.
        unlabeled.index[9:12] = unlabeled.index[:3]
        unlabeled.x = view.unlabeled[unlabeled.index]
        slow = slow_step(method, labeled, unlabeled, kept, tau, 2.0)
        expected = torch.autograd.grad(slow, parameters)
        loss = method.loss(labeled, unlabeled)
        assert loss.item() == pytest.approx(slow.item(), abs=1e-11)
        for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        assert {i: int(c) for i, c in enumerate(method.kept[:-1].tolist()) if c < 4} == kept
        assert torch.equal(method.counts, torch.bincount(method.kept[:-1], minlength=5))
        with torch.no_grad():
            for parameter, gradient in zip(parameters, expected, strict=True):
                parameter -= 0.5 * gradient
    assert 0 < len(kept) < len(view.unlabeled)
    assert len(set(kept.values())) > 1


def test_thresholds_by_hand(make_view: Callable[..., Any]) -> None:
    method = FlexMatch(threshold=0.9)
    view = make_view(method)
    assert method.thresholds().tolist() == [0.0] * 4, "nothing was learned, nothing is asked for"
    n = len(view.unlabeled)
    method.keep(torch.arange(15), torch.arange(15) // 10, torch.ones(15))
    most = n - 15
    expected = [0.9 * (k / most) / (2 - k / most) for k in (10, 5, 0, 0)]
    assert method.thresholds().tolist() == pytest.approx(expected)
    method.keep(torch.arange(40), torch.full((40,), 2), torch.ones(40))
    expected = [0.9 * (k / 40) / (2 - k / 40) for k in (0, 0, 40, 0)]
    assert n - 40 < 40
    assert method.thresholds().tolist() == pytest.approx(expected)


def test_an_unsure_example_keeps_its_class_and_a_sure_one_changes_it(make_view: Callable[..., Any]) -> None:
    method = FlexMatch(threshold=0.9)
    make_view(method)
    method.keep(torch.tensor([3, 5, 3]), torch.tensor([1, 2, 0]), torch.tensor([0.95, 0.89, 0.5]))
    assert method.kept[3] == 1
    assert method.kept[5] == 4
    method.keep(torch.tensor([3]), torch.tensor([2]), torch.tensor([0.9]))
    assert method.kept[3] == 2
    assert method.counts.tolist() == [0, 0, 1, 0, len(method.kept) - 2]
