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
from selfbench.methods.mean_teacher.visual_prompt import Prompts, VisualPrompt
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source

METHODS = [VisualPrompt(side=4, lr=0.1, change=0.0), VisualPrompt(side=3, optimizer="sgd")]


def _decorated(x: Tensor, psi: Tensor, omega: Tensor, places: list[list[float]]) -> Tensor:
    x = x.clone()
    side = psi.size(1)
    for prompt, (down, right) in zip((psi, omega), places, strict=True):
        top, left = int(down * (x.size(2) - side + 1)), int(right * (x.size(3) - side + 1))
        x[:, :, top : top + side, left : left + side] += prompt
    return x


@pytest.mark.parametrize("change", [0.0, 0.02, 1.0])
def test_steps_equal_a_loop_over_single_pixels(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, change: float
) -> None:
    lr, penalty, damping, side = 0.5, 30.0, 1e-4, 3
    method = VisualPrompt(
        lr=lr, optimizer="sgd", side=side, momentum=0.8, penalty=penalty, change=change, damping=damping
    )
    method.setup(source_model(), source)
    model = copy.deepcopy(method.model)
    generator = torch.Generator()
    generator.set_state(method.generator.get_state())
    shape = (3, side, side)
    psi, omega, psi_t, omega_t = (torch.zeros(shape) for _ in range(4))
    v_psi, v_omega = np.zeros(shape), np.zeros(shape)
    star, start, weight, work = (np.zeros(shape) for _ in range(4))
    before, domains = None, 1
    for first in range(0, 40, 8):
        x = images[first : first + 8]
        with torch.no_grad():
            q = model(_decorated(random_views(x, generator)[0], psi_t, omega_t, method.student.places)).softmax(1)
        psi.requires_grad_(True)
        omega.requires_grad_(True)
        y = model(_decorated(x, psi, omega, method.student.places))
        loss = -sum((q_b * y_b.log_softmax(0)).sum() for q_b, y_b in zip(q, y, strict=True)) / len(x)
        g_psi, g_omega = (item.numpy() for item in torch.autograd.grad(loss, (psi, omega)))
        confidence = np.mean([row.softmax(0).max().item() for row in y.detach()])
        psi, omega = psi.detach(), omega.detach()
        if before is not None and abs(confidence - before) > change:
            domains += 1
            for i in np.ndindex(shape):
                weight[i] += max(0.0, work[i]) / ((omega[i].item() - start[i]) ** 2 + damping)
                work[i], star[i], start[i] = 0.0, omega[i].item(), omega[i].item()
        before = confidence
        torch.testing.assert_close(method.predict(x), y.detach(), rtol=1e-4, atol=1e-4)
        for i in np.ndindex(shape):
            total = g_omega[i] + 2 * penalty * weight[i] * (omega[i].item() - star[i])
            v_psi[i], v_omega[i] = 0.9 * v_psi[i] + g_psi[i], 0.9 * v_omega[i] + total
            step = -lr * (total + 0.9 * v_omega[i])
            psi[i] -= lr * (g_psi[i] + 0.9 * v_psi[i])
            omega[i] += step
            work[i] -= g_omega[i] * step
            psi_t[i] = 0.8 * psi_t[i] + 0.2 * psi[i]
            omega_t[i] = 0.8 * omega_t[i] + 0.2 * omega[i]
        for mine, theirs in (
            (method.student.specific, psi), (method.student.agnostic, omega), (method.teacher.specific, psi_t),
            (method.teacher.agnostic, omega_t), (method.sensitivity, torch.from_numpy(weight)),
        ):  # fmt: skip
            torch.testing.assert_close(mine.detach().double(), theirs.double(), rtol=2e-3, atol=2e-5)
    assert domains == {0.0: 5, 1.0: 1}.get(change, domains)
    assert (weight.max() > 0) == (domains > 1)


def test_first_prediction_and_no_learning_are_batch_statistics(stream: Callable[..., Any]) -> None:
    still, norm = stream(VisualPrompt(side=4, lr=0.0)), stream(Norm())
    for mine, theirs in zip(still.logits, norm.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    moved = stream(VisualPrompt(side=4, lr=0.1))
    np.testing.assert_array_equal(moved.logits[0], norm.logits[0])
    assert not np.array_equal(moved.logits[1], norm.logits[1])


def test_only_the_prompts_learn(stream: Callable[..., Any], source_model: Callable[..., nn.Module]) -> None:
    method = stream(VisualPrompt(side=4)).method
    before = source_model().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in method.model.state_dict().items())
    for prompt in method.student.parameters():
        assert prompt.grad.abs().max() > 0
        assert prompt.abs().max() > 0
    assert all(prompt.grad is None for prompt in method.teacher.parameters())


def test_a_penalty_holds_the_agnostic_prompt_alone(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    moves = {}
    for penalty in (0.0, 50.0):
        method = VisualPrompt(side=4, lr=0.05, optimizer="sgd", penalty=penalty, change=1.0)
        source.generator.manual_seed(0)
        method.setup(source_model(), source)
        method.sensitivity.fill_(0.1)
        method.anchor.fill_(0.0)
        for _ in range(4):
            method.predict(images)
        moves[penalty] = [prompt.abs().mean().item() for prompt in method.student.parameters()]
    assert moves[50.0][1] < 0.7 * moves[0.0][1]
    assert moves[50.0][0] == pytest.approx(moves[0.0][0], rel=0.2)


def test_the_predictor_decorates_images(source_model: Callable[..., nn.Module], source: Source, images: Tensor) -> None:
    method = VisualPrompt(side=4, lr=0.1)
    method.setup(source_model(), source)
    method.predict(images)
    with torch.no_grad():
        assert torch.equal(method.predictor()(images), method.model(method.student(images)))
        assert not torch.equal(method.predictor()(images), method.model(images))


def test_prompts_lie_within_the_image_at_any_place() -> None:
    prompts = Prompts(3, 3, torch.zeros(1), torch.Generator())
    with torch.no_grad():
        prompts.specific.fill_(1.0)
        prompts.agnostic.fill_(10.0)
    for place in ([0.0, 0.0], [0.999, 0.999], [0.5, 0.2]):
        prompts.places = [place, [0.0, 0.0]]
        out = prompts(torch.zeros(2, 3, 5, 7))
        assert out.shape == (2, 3, 5, 7)
        assert out.sum() == 2 * 3 * 9 * 11
    assert (Prompts(3, 5, torch.zeros(1), torch.Generator())(torch.zeros(1, 3, 5, 5)) == 0).all()
    with pytest.raises(UsageError, match="does not fit"):
        prompts(torch.zeros(1, 3, 2, 9))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resumed_equals_uninterrupted(stream: Callable[..., Any], method: Any) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


def test_counted_passes(stream: Callable[..., Any]) -> None:
    assert stream(VisualPrompt(side=4)).counts.passes == 40 * 4


def test_gray_images_have_gray_prompts(source: Source) -> None:
    method = VisualPrompt(side=4, lr=0.1)
    method.setup(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)), source
    )
    assert method.predict(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))).shape == (5, 4)
    assert method.student.specific.shape == (1, 4, 4)
