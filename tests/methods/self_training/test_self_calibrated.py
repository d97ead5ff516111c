from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.self_calibrated import SelfCalibrated, corrected

LABELED, BATCH = 12, 8


def calibrated(method: Any) -> list[list[float]]:
    """The method in its first round, by a model that disagrees with some labels; its probabilities of each example."""
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(0.8 * torch.randn(parameter.shape, generator=method.view.generator, dtype=parameter.dtype))
        own = [method.model.eval()(x[None])[0].softmax(0).tolist() for x in method.view.labeled]
    method._correct()
    method.round = method.labelled_in = 1
    method.model.train()
    return own


def test_hard_labels_are_replaced_where_the_model_is_sure() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 5.0]])
    given = torch.tensor([1, 1, 2])
    replaced = corrected(logits, given, weight=1.0, threshold=0.9)
    assert replaced.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    half = corrected(logits, given, weight=0.5, threshold=0.9)
    assert half.tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(("labels", "weight"), [("soft", 0.3), ("hard", 0.7), ("soft", 1.0)])
def test_the_loss_of_a_round_equals_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], labels: str, weight: float
) -> None:
    method = SelfCalibrated(labels=labels, weight=weight, threshold=0.5)
    view = make_view(method)
    fresh = {name: value.clone() for name, value in method.model.state_dict().items()}
    labeled, unlabeled = make_batches(view, unlabeled=0)
    own = calibrated(method)
    assert all(torch.equal(value, fresh[name]) for name, value in method.model.state_dict().items())
    expected, disagree = torch.zeros((), dtype=torch.float64), 0
    for i, (x, y) in enumerate(zip(labeled.weak, labeled.y.tolist(), strict=True)):
        p = own[i]
        top = p.index(max(p))
        disagree += top != y
        hard = top if max(p) >= 0.5 else y
        s = p if labels == "soft" else [float(c == hard) for c in range(4)]
        z = method.model(x[None])[0]
        for c in range(4):
            t = (1 - weight) * (c == y) + weight * s[c]
            expected = expected - t * (z[c] - z.exp().sum().log()) / BATCH
    assert disagree > 0
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    parameters = list(method.model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert method.targets.shape == (LABELED, 4)
    assert not method.targets.requires_grad


def test_wrong_labels_are_taken_back(adapt: Callable[..., Any], make_view: Callable[..., Any]) -> None:
    """A model trained on labels of which two are wrong corrects both, and no right one, by its own predictions."""
    method = SelfCalibrated(labels="hard", weight=1.0, threshold=0.0)
    view = make_view(method)
    right = view.labels.clone()
    view.labels[[0, 5]] = (right[[0, 5]] + 1) % 4
    optimizer = torch.optim.SGD(method.model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(method.model(view.labeled), right).backward()
        optimizer.step()
    method._correct()
    assert method.targets.argmax(dim=1).tolist() == right.tolist()


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(SelfCalibrated(weight=0.0))
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(SelfCalibrated()).logits[-1], baseline.logits[-1])


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    """Five steps, then two rounds: the labelled examples, and three steps."""
    step = 3 * BATCH
    limit = 5 * step + 2 * (LABELED + 3 * step)
    result = adapt(SelfCalibrated(rounds=2, teacher=5 * step / limit), limit=limit)
    assert result.counts.passes == limit
    assert result.method.round == 2


@pytest.mark.parametrize("stop_after", [3, 35, 50])
def test_a_run_killed_in_any_round_resumes_bit_equal(adapt: Callable[..., Any], stop_after: int) -> None:
    whole = adapt(SelfCalibrated())
    killed = adapt(SelfCalibrated(), checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(SelfCalibrated())
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
