from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.views import random_views
from selfbench.methods.mean_teacher.fst import Fst
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.protocols.stream import Source

METHODS = [Fst(threshold=0.3), Fst(optimizer="sgd", ahead=2, threshold=0.3), Fst(ahead=0, threshold=0.3)]


class _Adam:
    """Adam on a list of tensors, by hand; `copy.deepcopy` remembers where it was."""

    def __init__(self, n: int) -> None:
        self.first, self.second, self.t = [0.0] * n, [0.0] * n, 0

    def step(self, parameters: list[Tensor], gradients: tuple[Tensor, ...], lr: float) -> None:
        self.t += 1
        for i, (parameter, g) in enumerate(zip(parameters, gradients, strict=True)):
            self.first[i] = 0.9 * self.first[i] + 0.1 * g
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g
            m, v = self.first[i] / (1 - 0.9**self.t), self.second[i] / (1 - 0.999**self.t)
            parameter -= lr * m / (v.sqrt() + 1e-8)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_steps_equal_a_loop_with_virtual_students(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, ahead: int
) -> None:
    lr, images, model = 0.01, images.double(), source_model().double()
    # Half of the first images are confident enough.
    norm = Norm()
    norm.setup(copy.deepcopy(model), source)
    tau = norm.predict(images[:9]).softmax(1).amax(1).median().item()
    method = Fst(lr=lr, ahead=ahead, threshold=tau, momentum=0.7)
    method.setup(model, source)
    student, teacher = copy.deepcopy(method.model), copy.deepcopy(method.teacher)
    adam = _Adam(len(list(student.parameters())))
    generator = torch.Generator()
    generator.set_state(method.generator.get_state())
    shares: list[float] = []

    def learn(model: nn.Module, updater: _Adam, x: Tensor, view: Tensor) -> Tensor:
        with torch.no_grad():
            targets = teacher(x)
        probabilities = targets.softmax(1)
        weight = sum(row.max().item() >= tau for row in probabilities) / len(x)
        shares.append(weight)
        losses = [-row.log_softmax(0)[p.argmax()] for row, p in zip(model(view), probabilities, strict=True)]
        gradients = torch.autograd.grad(weight * sum(losses) / len(x), list(model.parameters()))
        with torch.no_grad():
            updater.step(list(model.parameters()), gradients, lr)
        return targets

    def follow(model: nn.Module, m: float) -> None:
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.copy_(m * mine + (1 - m) * theirs)

    for t, x in enumerate((images[:9], images[9:18], images[18:27]), start=1):
        view = random_views(x, generator)[0]
        m = {1: 0.5, 2: 2 / 3, 3: 0.7}[t]
        follow(student, m)
        virtual, own = copy.deepcopy(student), copy.deepcopy(adam)
        for _ in range(ahead):
            learn(virtual, own, x, view)
            follow(virtual, m)
        expected = learn(student, adam, x, view)
        torch.testing.assert_close(method.predict(x), expected, rtol=1e-8, atol=1e-8)
        for mine, theirs in ((method.model, student), (method.teacher, teacher)):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert any(0 < share < 1 for share in shares)


def test_virtual_steps_leave_no_trace_on_the_student(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = Fst(threshold=0.0, ahead=2)
    method.setup(source_model(), source)
    method.predict(images)
    before = copy.deepcopy((method.model.state_dict(), method.updater.state_dict()["state"]))
    taught = copy.deepcopy(method.teacher.state_dict())
    method._look_ahead(images, images, 0.5)
    weights, moments = method.model.state_dict(), method.updater.state_dict()["state"]
    assert all(torch.equal(value, before[0][name]) for name, value in weights.items())
    for index, item in moments.items():
        assert all(torch.equal(value, before[1][index][name]) for name, value in item.items())
    assert not torch.equal(method.teacher[0].weight, taught["0.weight"])


def test_without_learning_it_is_batch_statistics(stream: Callable[..., Any]) -> None:
    # With no image confident enough, no step has a gradient.
    norm = stream(Norm())
    for still in (Fst(lr=0.0), Fst(threshold=1.0)):
        for mine, theirs in zip(stream(still).logits, norm.logits, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_all_weights_of_the_student_have_a_gradient(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = Fst(threshold=0.3)
    method.setup(source_model(), source)
    method.predict(images)
    assert all(parameter.grad.abs().max() > 0 for parameter in method.model.parameters())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_looking_ahead_changes_the_first_prediction(stream: Callable[..., Any]) -> None:
    now, future = stream(Fst(lr=0.01, ahead=0, threshold=0.0)), stream(Fst(lr=0.01, ahead=1, threshold=0.0))
    np.testing.assert_allclose(now.logits[0], stream(Norm()).logits[0], rtol=1e-6)
    assert not np.allclose(now.logits[0], future.logits[0], rtol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resumed_equals_uninterrupted(stream: Callable[..., Any], method: Any) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize(("ahead", "per_image"), [(0, 4), (1, 8), (3, 16)])
def test_counted_passes_include_virtual_steps(stream: Callable[..., Any], ahead: int, per_image: int) -> None:
    assert stream(Fst(ahead=ahead)).counts.passes == 40 * per_image


def test_group_norm_model_runs(stream: Callable[..., Any]) -> None:
    result = stream(Fst(threshold=0.0), norm=lambda channels: nn.GroupNorm(1, channels))
    assert all(np.isfinite(logits).all() for logits in result.logits)
