"""The two forms of FST that train: `fst-deep` and `fst-wide`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.fst_deep import FstDeep
from selfbench.methods.mean_teacher.fst_wide import FstWide
from selfbench.suite.errors import BudgetExhausted
from selfbench.suite.protocols.adaptation import Recipe

BATCH = 8
TAU = 0.4
METHODS = [
    pytest.param(FstDeep(threshold=TAU, ratio=2), id="deep"),
    pytest.param(FstWide(threshold=TAU, ratio=2), id="wide"),
]
Weights = dict[str, Tensor]


class Slow:
    """FST on dictionaries of weights, one example at a time, with SGD (Nesterov, weight decay) by hand."""

    def __init__(self, method: Any, momentum: float) -> None:
        self.model, self.method, self.momentum = method.model, method, momentum
        self.student = {name: value.detach().clone() for name, value in method.model.named_parameters()}
        self.teacher = {name: value.detach().clone() for name, value in method.teacher.named_parameters()}
        self.velocity: Weights = {}
        self.shares: list[float] = []

    def loss(self, student: Weights, x: Tensor, y: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for one, label in zip(x, y.tolist(), strict=True):
            z = functional_call(self.model, student, (one[None],))[0]
            total = total + (z.exp().sum().log() - z[label]) / len(x)
        labels, sure = [], 0
        for one in weak:
            p = functional_call(self.model, self.teacher, (one[None],))[0].softmax(0).tolist()
            labels.append(p.index(max(p)))
            sure += max(p) >= self.method.threshold
        self.shares.append(sure / len(weak))
        for one, label in zip(strong, labels, strict=True):
            z = functional_call(self.model, student, (one[None],))[0]
            total = total + self.method.weight * sure / len(weak) * (z.exp().sum().log() - z[label]) / len(strong)
        return total

    def teach(self, weights: Weights) -> None:
        m = self.momentum
        self.teacher = {name: m * value + (1 - m) * weights[name] for name, value in self.teacher.items()}

    def step(self, student: Weights, lr: float, *batch: Tensor) -> Weights:
        leaves = {name: value.clone().requires_grad_() for name, value in student.items()}
        gradients = torch.autograd.grad(self.loss(leaves, *batch), list(leaves.values()))
        moved = {}
        for (name, value), gradient in zip(student.items(), gradients, strict=True):
            g = gradient + 5e-4 * value
            self.velocity[name] = 0.9 * self.velocity[name] + g if name in self.velocity else g
            moved[name] = value - lr * (g + 0.9 * self.velocity[name])
        return moved


def _compare(method: Any, slow: Slow, loss: Tensor, batch: tuple[Tensor, ...]) -> None:
    leaves = {name: value.clone().requires_grad_() for name, value in slow.student.items()}
    expected = slow.loss(leaves, *batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    gradients = torch.autograd.grad(expected, list(leaves.values()))
    for mine, theirs in zip(torch.autograd.grad(loss, list(method.model.parameters())), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    for name, value in method.teacher.named_parameters():
        torch.testing.assert_close(value, slow.teacher[name], rtol=0, atol=1e-10)
    for name, value in method.model.named_parameters():
        assert torch.equal(value, slow.student[name])


LR = 2.0 * 0.05 * math.cos(7 * math.pi / 16 * 0.5)
"""lr_scale times the recipe's rate, half way."""


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_two_deep_steps_equal_a_loop_with_virtual_students(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], ahead: int
) -> None:
    method = FstDeep(ahead=ahead, threshold=TAU, weight=2.0, momentum=0.6, lr_scale=2.0)
    labeled, unlabeled = make_batches(make_view(method))
    batch = (labeled.weak, labeled.y, unlabeled.weak, unlabeled.strong)
    slow = Slow(method, 0.0)
    for t in (1, 2):
        slow.momentum = min(1 - 1 / (t + 1), 0.6)
        virtual = dict(slow.student)
        for _ in range(ahead):
            slow.teach(virtual)
            virtual = slow.step(virtual, LR, *batch)
        slow.teach(virtual)
        _compare(method, slow, method.loss(labeled, unlabeled), batch)
    assert any(0 < share < 1 for share in slow.shares)


@pytest.mark.parametrize("ahead", [1, 3])
def test_two_wide_steps_equal_a_loop_with_virtual_students(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], ahead: int
) -> None:
    method = FstWide(ahead=ahead, threshold=TAU, weight=2.0, momentum=0.6, lr_scale=2.0)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=10 * (ahead + 1))
    slow = Slow(method, 0.0)
    generator = torch.Generator()
    generator.set_state(view.generator.get_state())
    for t in (1, 2):
        slow.momentum = min(1 - 1 / (t + 1), 0.6)
        future = []
        for k in range(1, ahead + 1):
            chosen = torch.randint(len(view.labeled), (len(labeled),), generator=generator)
            x, y = view.task.weak(view.labeled[chosen], generator), view.labels[chosen]
            part = slice(10 * k, 10 * (k + 1))
            future.append(slow.step(slow.student, LR, x, y, unlabeled.weak[part], unlabeled.strong[part]))
        slow.teach({name: sum(one[name] for one in future) / ahead for name in slow.student})
        batch = (labeled.weak, labeled.y, unlabeled.weak[:10], unlabeled.strong[:10])
        _compare(method, slow, method.loss(labeled, unlabeled), batch)
        slow.teach(slow.student)
        method.after_step()
        for name, value in method.teacher.named_parameters():
            torch.testing.assert_close(value, slow.teacher[name], rtol=0, atol=1e-10)
    assert any(0 < share < 1 for share in slow.shares)


@pytest.mark.parametrize("method", METHODS)
def test_virtual_steps_leave_the_student_and_its_running_statistics_alone(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any, method: Any
) -> None:
    method = dataclasses.replace(method)
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    before = {name: value.clone() for name, value in method.model.named_parameters()}
    taught = {name: value.clone() for name, value in method.teacher.named_parameters()}
    method.loss(labeled, unlabeled)
    assert all(torch.equal(value, before[name]) for name, value in method.model.named_parameters())
    assert any(not torch.equal(value, taught[name]) for name, value in method.teacher.named_parameters())
    assert method.model[1].num_batches_tracked.item() == 1
    assert method.model[3].training
    assert not method.teacher[3].training
    assert method.predictor() is method.teacher


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_ends_in_a_virtual_step_leaves_the_student_as_it_was(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    method = dataclasses.replace(method)
    view = make_view(method, progress=0.0)
    labeled, unlabeled = make_batches(view)
    before = {name: value.clone() for name, value in method.model.named_parameters()}
    view.meter.allot(100.0)
    with pytest.raises(BudgetExhausted):
        method.loss(labeled, unlabeled)
    assert all(torch.equal(value, before[name]) for name, value in method.model.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_unlabelled_loss_has_a_gradient_for_the_student_alone(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    method = dataclasses.replace(method)
    labeled, unlabeled = make_batches(make_view(method))
    supervised = torch.nn.functional.cross_entropy(method.model(labeled.weak), labeled.y)
    base = torch.autograd.grad(supervised, list(method.model.parameters()))
    loss = method.loss(labeled, unlabeled)
    own = torch.autograd.grad(loss, list(method.model.parameters()))
    assert max((a - b).abs().max().item() for a, b in zip(own, base, strict=True)) > 1e-4
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.teacher.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any], method: Any) -> None:
    baseline, zero = adapt(Supervised()), adapt(dataclasses.replace(method, weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(dataclasses.replace(method)).logits[-1], baseline.logits[-1])


@pytest.mark.parametrize("method", METHODS)
def test_counted_passes(adapt: Callable[..., Any], method: Any) -> None:
    limit = 3 * BATCH * 4 * (3 + 4 * 2)
    result = adapt(dataclasses.replace(method), limit=limit)
    assert result.counts.passes == result.at[-1] == limit
    assert result.method.t == 4  # the fourth step was refused


ADAM = Recipe(optimizer="adamw", lr=0.01, batch_size=BATCH, ema=0.9, points=3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_bit_equal(
    adapt: Callable[..., Any], dropout_task: Any, method: Any, optimizer: str
) -> None:
    if optimizer == "adamw":
        dropout_task.recipe = ADAM

    def run(**options: Any) -> Any:
        return adapt(dataclasses.replace(method), task=dropout_task, limit=4000, **options)

    whole, killed, resumed = run(), run(checkpoints=0, stop_after=5), run()
    assert 0 < killed.counts.passes < whole.counts.passes
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("model", "teacher"):
        expected = getattr(whole.method, name).state_dict()
        state = getattr(resumed.method, name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert isinstance(whole.method.virtual, torch.optim.AdamW) == (optimizer == "adamw")
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
