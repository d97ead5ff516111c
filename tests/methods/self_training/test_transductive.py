from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.transductive import Transductive
from selfbench.suite import registry
from selfbench.suite.registry import register_method
from selfbench.suite.suites import misfit

TESTED, BATCH = 40, 8


@register_method("tested-inductive", family="tests", protocol="adaptation", paper="-")
@dataclasses.dataclass
class Inductive(Transductive):
    """The same algorithm, without the need declared."""


def labelled(method: Any) -> None:
    """The method in its first round, by a model that tells the classes apart."""
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(0.8 * torch.randn(parameter.shape, generator=method.view.generator, dtype=parameter.dtype))
    method._label()
    method.round = method.labelled_in = 1
    method.model.train()


@pytest.mark.parametrize(("inputs", "threshold"), [("test", 0.0), ("test", 0.6), ("pool", 0.6)])
def test_the_loss_of_a_round_equals_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], inputs: str, threshold: float
) -> None:
    method = Transductive(inputs=inputs, threshold=threshold, ratio=2, weight=0.7)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=0)
    labelled(method)
    shown = view.test_inputs if inputs == "test" else view.unlabeled
    assert len(shown) == (TESTED if inputs == "test" else 68)
    own = []
    with torch.no_grad():
        for u in shown:
            p = method.model(u[None])[0].softmax(0).tolist()
            own.append((p.index(max(p)), max(p) >= threshold))
    assert sum(kept for _, kept in own) > 0
    assert all(kept for _, kept in own) == (threshold == 0.0)
    assert len({label for label, _ in own}) > 1

    state = view.generator.get_state()
    drawn = torch.randint(len(shown), (2 * BATCH,), generator=view.generator)
    views = view.task.weak(shown[drawn], view.generator)
    view.generator.set_state(state)
    expected = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y.tolist(), strict=True):
        z = method.model(x[None])[0]
        expected = expected + (z.exp().sum().log() - z[y]) / BATCH
    for u, j in zip(views, drawn.tolist(), strict=True):
        label, kept = own[j]
        z = method.model(u[None])[0]
        expected = expected + 0.7 * kept * (z.exp().sum().log() - z[label]) / (2 * BATCH)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    parameters = list(method.model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert not method.targets.is_floating_point()


def test_the_loss_on_own_labels_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        method = Transductive(weight=weight)
        labeled, unlabeled = make_batches(make_view(method), unlabeled=0)
        labelled(method)
        parts = torch.autograd.grad(method.loss(labeled, unlabeled), list(method.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[0.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * own, rtol=0, atol=1e-12)


def test_without_the_need_declared_there_are_no_test_inputs(make_view: Callable[..., Any]) -> None:
    assert len(make_view(Inductive()).test_inputs) == 0
    assert len(make_view(Supervised()).test_inputs) == 0


def test_test_inputs_change_the_result_and_their_labels_do_not_exist_here(adapt: Callable[..., Any]) -> None:
    """Declared or not, the same algorithm differs by the test inputs alone."""
    supervised, blind, seeing = adapt(Supervised()), adapt(Inductive()), adapt(Transductive())
    np.testing.assert_array_equal(blind.logits[-1], supervised.logits[-1])
    assert not np.array_equal(seeing.logits[-1], supervised.logits[-1])
    assert seeing.counts.labels == supervised.counts.labels
    assert "test_labels" not in vars(seeing.method.view)


def test_a_task_that_does_not_grant_test_inputs_is_refused() -> None:
    method = registry.get("method", "transductive")
    granting, inductive = registry.get("task", "newsgroups-few"), registry.get("task", "digits-semi")
    assert misfit(method, granting) == ""
    assert "needs test-inputs, which task 'digits-semi' does not grant" in misfit(method, inductive)


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(Transductive(weight=0.0))
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    """Five steps of the teacher, then two rounds of three steps."""
    step, own = 3 * BATCH, TESTED + 3 * 3 * 3 * BATCH
    limit = 5 * step + 2 * own
    result = adapt(Transductive(ratio=2, rounds=2, teacher=5 * step / limit), limit=limit)
    assert result.counts.passes == limit
    assert result.method.round == 2


@pytest.mark.parametrize("stop_after", [3, 25, 34])
def test_a_run_killed_in_any_round_resumes_bit_equal(adapt: Callable[..., Any], stop_after: int) -> None:
    method = Transductive(threshold=0.3)
    whole = adapt(dataclasses.replace(method))
    killed = adapt(dataclasses.replace(method), checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(dataclasses.replace(method))
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
