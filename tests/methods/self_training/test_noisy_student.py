from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.noisy_student import NoisyStudent
from selfbench.suite.protocols.adaptation import AdaptationTask

POOL = 68
BATCH = 8


def _as_student(method: NoisyStudent, view: Any) -> None:
    """The method as it stands in its first round, on the labels of its untrained model."""
    method.round = method.labelled_in = 1
    method.targets = method._label(view.unlabeled)
    method.model.train()


def _slow(model: Any, labeled: Any, unlabeled: Any, targets: Tensor, weight: float) -> Tensor:
    """One example at a time; `targets` (B, K) are probabilities."""
    loss = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.strong, labeled.y, strict=True):
        z = model(x[None])[0]
        loss = loss + (z.exp().sum().log() - z[y]) / len(labeled)
    for x, target in zip(unlabeled.strong, targets, strict=True):
        z = model(x[None])[0]
        for k, p in enumerate(target.tolist()):
            loss = loss + weight * p * (z.exp().sum().log() - z[k]) / len(unlabeled)
    return loss


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], labels: str, weight: float
) -> None:
    method = NoisyStudent(dropout=0.0, labels=labels, weight=weight)
    view = make_view(method)
    labeled, unlabeled = make_batches(view)
    _as_student(method, view)
    with torch.no_grad():
        targets = torch.stack([method.model(u[None])[0].softmax(0) for u in view.unlabeled[: len(unlabeled)]])
    if labels == "hard":
        targets = torch.stack([(row == row.max()).double() for row in targets])
    parameters = list(method.model.parameters())
    slow = _slow(method.model, labeled, unlabeled, targets, weight)
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


class PlainTask(AdaptationTask):
    """No strong view; `recipe`, `model` and `inputs` of another task."""

    n_classes = 4

    def __init__(self, of: AdaptationTask, own_loss: bool = False) -> None:
        self.recipe, self.model, self.inputs = of.recipe, of.model, of.inputs  # type: ignore[misc, method-assign]
        self.own_loss = own_loss  # type: ignore[misc]
        self.batches: list[int] = []

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return 0.9 * inputs

    def supervised(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        self.batches.append(len(inputs))
        return super().supervised(model, inputs, targets)


@pytest.mark.parametrize("own_loss", [False, True])
def test_without_a_strong_view_the_weak_one_is_learnt_from(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any, own_loss: bool
) -> None:
    """In one forward, or one after the other where the model computes its loss itself: equal without batch norm."""
    task = PlainTask(dropout_task, own_loss)
    task.model = lambda: nn.Linear(6, 4).double()  # type: ignore[method-assign]
    method = NoisyStudent(dropout=0.0, weight=2.0)
    view = make_view(method, task)
    labeled, unlabeled = make_batches(view)
    _as_student(method, view)
    expected = F.cross_entropy(method.model(0.9 * labeled.x), labeled.y)
    targets = method.model(view.unlabeled).argmax(dim=1)[unlabeled.index]
    expected = expected + 2.0 * F.cross_entropy(method.model(0.9 * unlabeled.x), targets)
    assert method.loss(labeled, unlabeled).item() == pytest.approx(expected.item(), abs=1e-12)
    assert task.batches == ([len(unlabeled), len(labeled)] if own_loss else [])


def test_targets_are_those_of_the_examples_of_the_batch(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = NoisyStudent(dropout=0.0)
    view = make_view(method)
    labeled, unlabeled = make_batches(view)
    _as_student(method, view)
    method.targets = (torch.arange(POOL) * 7) % 4
    unlabeled.index = torch.arange(POOL - 16, POOL)
    logits = method.model(unlabeled.strong)
    expected = F.cross_entropy(method.model(labeled.strong), labeled.y)
    expected = expected + F.cross_entropy(logits, method.targets[-16:])
    assert method.loss(labeled, unlabeled).item() == pytest.approx(expected.item(), abs=1e-12)


def test_dropout_noises_the_features_of_students_alone(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = NoisyStudent(dropout=0.6)
    view = make_view(method)
    labeled, unlabeled = make_batches(view)
    alone = make_batches(view, unlabeled=0)[1]
    teacher = method.loss(labeled, alone)
    assert teacher.item() == F.cross_entropy(method.model(labeled.strong), labeled.y).item()
    _as_student(method, view)
    hooks = len(method.model[-1]._forward_pre_hooks)
    *body, head = method.model.children()
    features = nn.Sequential(*body)(torch.cat([labeled.strong, unlabeled.strong]))
    torch.manual_seed(4)
    kept = torch.bernoulli(torch.full_like(features, 0.4))
    logits = head(features * kept / 0.4)
    expected = F.cross_entropy(logits[:BATCH], labeled.y) + F.cross_entropy(logits[BATCH:], method.targets[:16])
    torch.manual_seed(4)
    assert method.loss(labeled, unlabeled).item() == pytest.approx(expected.item(), abs=1e-12)
    assert len(head._forward_pre_hooks) == hooks


def test_the_teacher_is_not_noised(make_view: Callable[..., Any], dropout_task: Any) -> None:
    method = NoisyStudent(labels="soft")
    view = make_view(method, dropout_task, progress=0.0)
    method.model.train()
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    targets = method._label(view.unlabeled)
    assert view.meter.counts.passes == POOL
    assert all(torch.equal(value, before[name]) for name, value in method.model.state_dict().items())
    expected = torch.cat([method.model.eval()(u[None]) for u in view.unlabeled]).softmax(1)
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-12)
    assert not targets.requires_grad


@pytest.mark.parametrize("augment", ["weak", "strong"])
def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any], augment: str) -> None:
    baseline, zero = adapt(Supervised(augment=augment)), adapt(NoisyStudent(weight=0.0, augment=augment))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    weighted = adapt(NoisyStudent(augment=augment))
    assert not np.array_equal(weighted.logits[-1], baseline.logits[-1])


def test_the_unlabelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        method = NoisyStudent(weight=weight, dropout=0.0)
        view = make_view(method)
        labeled, unlabeled = make_batches(view)
        _as_student(method, view)
        parts = torch.autograd.grad(method.loss(labeled, unlabeled), list(method.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[0.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * own, rtol=0, atol=1e-12)


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    """A teacher of 5 steps, two students of 3 steps each that label the pool before."""
    step, student = 3 * BATCH, 3 * BATCH * (1 + 2)
    limit = 5 * step + 2 * (POOL + 3 * student)
    result = adapt(NoisyStudent(ratio=2, teacher=5 * step / limit), limit=limit)
    assert result.counts.passes == limit
    assert result.counts.forward == limit / 3 + 2 * POOL * 2 / 3
    assert result.method.round == 2


class Watched(NoisyStudent):
    """Keeps the weights with which the pool was labelled, and the labels."""

    def _label(self, inputs: Tensor) -> Tensor:
        seen = self.__dict__.setdefault("seen", [])
        targets = super()._label(inputs)
        seen.append((self.round, self.model[0].weight.detach().clone(), targets))
        return targets


def test_every_round_labels_the_pool_anew_with_the_student_before(adapt: Callable[..., Any]) -> None:
    seen = adapt(Watched(rounds=3, ratio=1, labels="soft"), limit=4000).method.seen
    assert [number for number, _, _ in seen] == [1, 2, 3]
    for (_, weight, targets), (_, later, others) in itertools.pairwise(seen):
        assert not torch.equal(weight, later)
        assert not torch.equal(targets, others)


@pytest.mark.parametrize("stop_after", [3, 15, 17, 19, 22])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_run_killed_in_any_round_resumes_bit_equal(adapt: Callable[..., Any], stop_after: int, labels: str) -> None:
    def fresh() -> NoisyStudent:
        return NoisyStudent(ratio=2, labels=labels)

    whole = adapt(fresh())
    killed = adapt(fresh(), checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(fresh())
    assert whole.method.round == resumed.method.round == 2
    logits = killed.logits + resumed.logits
    for mine, theirs in zip(whole.logits, logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    expected = whole.method.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.method.model.state_dict().items())
    assert torch.equal(whole.method.targets, resumed.method.targets)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
