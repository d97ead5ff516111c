from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfbench.methods.mean_teacher.mean_teacher import MeanTeacher


def _shake(module: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def _slow(method: Any, labeled: Any, unlabeled: Any, weight: float) -> Tensor:
    """One example at a time, one class at a time."""
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        z = method.model(x[None])[0]
        supervised = supervised + z.exp().sum().log() - z[y]
    pairs = [*zip(labeled.weak, labeled.weak2, strict=True), *zip(unlabeled.weak, unlabeled.weak2, strict=True)]
    squares = torch.zeros((), dtype=torch.float64)
    for one, two in pairs:
        p = method.model(one[None])[0].softmax(0)
        q = method.teacher(two[None])[0].softmax(0).tolist()
        for k in range(len(q)):
            squares = squares + (p[k] - q[k]) ** 2 / len(q)
    return supervised / len(labeled) + weight * squares / len(pairs)


@pytest.mark.parametrize(("progress", "t"), [(0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (0.9, 1.0)])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], progress: float, t: float
) -> None:
    method = MeanTeacher(weight=20.0)
    labeled, unlabeled = make_batches(make_view(method, progress=progress))
    _shake(method.model, 1)
    parameters = list(method.model.parameters())
    slow = _slow(method, labeled, unlabeled, 20.0 * math.exp(-5 * (1 - t) ** 2))
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_gradient_reaches_the_student_and_never_the_teacher(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = MeanTeacher()
    labeled, unlabeled = make_batches(make_view(method))
    method.loss(labeled, unlabeled).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.model.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.teacher.parameters())
    assert method.predictor() is method.teacher


@pytest.mark.parametrize("decay", [0.6, 0.999])
def test_the_teacher_is_the_recursion_by_hand(make_view: Callable[..., Any], decay: float) -> None:
    method = MeanTeacher(decay=decay)
    make_view(method)
    expected = [parameter.detach().numpy().copy() for parameter in method.teacher.parameters()]
    for step in range(1, 6):
        _shake(method.model, step)
        method.after_step()
        alpha = min(1 - 1 / (step + 1), decay)
        for index, parameter in enumerate(method.model.parameters()):
            expected[index] = alpha * expected[index] + (1 - alpha) * parameter.detach().numpy()
        for mine, theirs in zip(method.teacher.parameters(), expected, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-14)


def test_the_teacher_keeps_running_statistics_of_its_own_views(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    method = MeanTeacher()
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    _shake(method.model, 1)
    for model, views in (
        (method.teacher, torch.cat([labeled.weak2, unlabeled.weak2])),
        (method.model, torch.cat([labeled.weak, unlabeled.weak])),
    ):
        model.expected = 0.1 * model[0](views).detach().mean(0)
    method.loss(labeled, unlabeled)
    method.after_step()
    for model in (method.teacher, method.model):
        torch.testing.assert_close(model[1].running_mean, model.expected, rtol=0, atol=1e-12)


def test_without_weight_there_is_no_teacher(make_view: Callable[..., Any]) -> None:
    method = MeanTeacher(weight=0.0)
    make_view(method)
    assert method.predictor() is None
    assert method.unlabeled_ratio() == 0
