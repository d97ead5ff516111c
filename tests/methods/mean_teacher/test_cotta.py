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
from selfbench.methods.mean_teacher.cotta import CoTTA
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.protocols.stream import Source


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(1, keepdim=True)


@pytest.mark.parametrize("p_th", [0.0, 1.0], ids=["plain", "views"])
@pytest.mark.parametrize("loss", ["ce", "sce"])
def test_steps_equal_the_algorithm_by_hand(
    source_model: Callable[..., nn.Module], source: Source, p_th: float, loss: str
) -> None:
    method = CoTTA(p_th=p_th, views=3, loss=loss, lr=0.01, optimizer="sgd", decay=0.9, restore=0.1)
    images = torch.rand(3, 12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    method.setup(source_model().double(), source)
    student, teacher = source_model().double(), source_model().double()
    for model in (student, teacher):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
    origin = [parameter.detach().clone() for parameter in student.parameters()]
    momentum = [torch.zeros_like(parameter) for parameter in origin]
    generator = torch.Generator()
    generator.set_state(source.generator.get_state())
    for x in images:
        with torch.no_grad():
            seen = random_views(x, generator, n=3) if p_th == 1.0 else x[None]
            target = sum(teacher(view) for view in seen) / len(seen)
        q, p = _softmax(target), _softmax(student(x))
        value = -(q * p.log()).sum(1)
        if loss == "sce":
            value = 0.5 * value - 0.5 * (p * q.log()).sum(1)
        gradients = torch.autograd.grad(value.mean(), list(student.parameters()))
        drawn = torch.rand(sum(weight.numel() for weight in origin), generator=generator, dtype=torch.float64)
        start = 0
        with torch.no_grad():
            for i, weight in enumerate(student.parameters()):
                momentum[i] = 0.9 * momentum[i] + gradients[i]
                weight -= 0.01 * (gradients[i] + 0.9 * momentum[i])
                average = list(teacher.parameters())[i]
                average.copy_(0.9 * average + 0.1 * weight)
                chosen = drawn[start : start + weight.numel()].view_as(weight) < 0.1
                weight.copy_(torch.where(chosen, origin[i], weight))
                start += weight.numel()
        torch.testing.assert_close(method.predict(x), target, rtol=0, atol=1e-9)
    for mine, theirs in ((method.model, student), (method.teacher, teacher)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_no_view_is_computed_when_the_source_is_confident(
    monkeypatch: pytest.MonkeyPatch, source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    def never(*arguments: Any, **options: Any) -> Tensor:
        raise AssertionError("views were computed")

    monkeypatch.setattr("selfbench.methods.common.view_norm.mean_over_views", never)
    anchor = Norm()
    anchor.setup(source_model(), source)
    confidence = anchor.predict(images).softmax(1).amax(1).mean().item()
    for p_th, skips in ((confidence - 1e-4, True), (confidence + 1e-4, False)):
        method = CoTTA(p_th=p_th)
        method.setup(source_model(), source)
        if skips:
            method.predict(images)
        else:
            with pytest.raises(AssertionError, match="views were computed"):
                method.predict(images)


@pytest.mark.parametrize("loss", ["ce", "sce"])
def test_the_loss_has_a_gradient_on_all_weights_of_the_student_and_on_no_others(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, loss: str
) -> None:
    # The teacher differs from the student, so that no gradient vanishes.
    method = CoTTA(p_th=0.0, loss=loss, lr=1e-5)
    method.setup(source_model(), source)
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=source.generator))
    logits = method.predict(images)
    assert not logits.requires_grad
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.model.parameters())
    for other in (method.teacher, method.anchor):
        assert all(weight.grad is None for weight in other.parameters())


def test_a_teacher_that_does_not_move_is_batch_normalisation_alone(stream: Callable[..., Any]) -> None:
    still = stream(CoTTA(p_th=0.0, lr=1e-5, restore=0.0, decay=0.9999))
    base = stream(Norm())
    for mine, theirs in zip(still.logits, base.logits, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    moved = stream(CoTTA(p_th=0.0, lr=0.05, restore=0.0, decay=0.9))
    assert np.abs(moved.logits[-1] - base.logits[-1]).max() > 1e-2


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
def test_restoration_brings_every_weight_back(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, norm: Callable[[int], nn.Module]
) -> None:
    method = CoTTA(p_th=0.0)
    model = source_model(norm)
    before = copy.deepcopy(list(model.parameters()))
    method.setup(model, source)
    method.restore = 1.0
    method.predict(images)
    assert all(torch.equal(a, b) for a, b in zip(method.model.parameters(), before, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(method.teacher.parameters(), before, strict=True))


@pytest.mark.parametrize(("p_th", "per_image"), [(0.0, 5), (1.0, 4 + 3)])
def test_counted_passes(stream: Callable[..., Any], images: Tensor, p_th: float, per_image: int) -> None:
    assert stream(CoTTA(p_th=p_th, views=3)).counts.passes == per_image * len(images)


@pytest.mark.parametrize("method", [CoTTA(p_th=0.0), CoTTA(p_th=1.0, views=2, loss="sce", optimizer="sgd")], ids=str)
def test_resumed_equals_uninterrupted(stream: Callable[..., Any], method: CoTTA) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    assert len(killed.logits) == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts.passes == resumed.counts.passes
