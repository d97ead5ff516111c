from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.views import random_views
from selfbench.methods.mean_teacher.cotta import CoTTA
from selfbench.methods.mean_teacher.petal import Petal, _least_informative
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source


def _double(source: Source) -> Source:
    assert source.posterior is not None
    source.posterior = tuple([part.double() for part in parts] for parts in source.posterior)  # type: ignore[assignment]
    return source


@pytest.mark.parametrize("p_th", [0.0, 1.0], ids=["plain", "views"])
@pytest.mark.parametrize("restore", ["fim", "random"])
@pytest.mark.parametrize("loss", ["ce", "sce"])
def test_steps_equal_the_algorithm_by_hand(
    source_model: Callable[..., nn.Module], source: Source, p_th: float, restore: str, loss: str
) -> None:
    source = _double(source)
    mean, variance = source.posterior
    method = Petal(
        p_th=p_th, views=3, restore=restore, loss=loss, lr=0.01, optimizer="sgd", decay=0.9, weight=1e-3, quantile=0.2,
        probability=0.1,
    )  # fmt: skip
    images = torch.rand(3, 12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    method.setup(source_model().double(), source)
    student, teacher = source_model().double(), source_model().double()
    for model in (student, teacher):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        with torch.no_grad():
            for weight, mu in zip(model.parameters(), mean, strict=True):
                weight.copy_(mu)
    momentum = [torch.zeros_like(mu) for mu in mean]
    generator = torch.Generator()
    generator.set_state(source.generator.get_state())
    for x in images:
        with torch.no_grad():
            seen = random_views(x, generator, n=3) if p_th == 1.0 else x[None]
            target = sum(teacher(view) for view in seen) / len(seen)
        q, p = target.softmax(1), student(x).softmax(1)
        value = -(q * p.log()).sum(1)
        if loss == "sce":
            value = 0.5 * value - 0.5 * (p * q.log()).sum(1)
        value = value.mean()
        for weight, mu, var in zip(student.parameters(), mean, variance, strict=True):
            value = value + 1e-3 * 0.5 * ((weight - mu) ** 2 / (var + 1e-6)).sum()
        gradients = torch.autograd.grad(value, list(student.parameters()))
        fisher = np.concatenate([gradient.flatten().numpy() ** 2 for gradient in gradients])
        if restore == "fim":
            masks = torch.from_numpy(fisher < np.quantile(fisher, 0.2))
            assert 0.15 < masks.double().mean() < 0.25
        else:
            masks = torch.rand(len(fisher), generator=generator, dtype=torch.float64) < 0.1
        start = 0
        with torch.no_grad():
            for i, weight in enumerate(student.parameters()):
                momentum[i] = 0.9 * momentum[i] + gradients[i]
                weight -= 0.01 * (gradients[i] + 0.9 * momentum[i])
                average = list(teacher.parameters())[i]
                average.copy_(0.9 * average + 0.1 * weight)
                chosen = masks[start : start + weight.numel()].view_as(weight)
                weight.copy_(torch.where(chosen, mean[i], weight))
                start += weight.numel()
        torch.testing.assert_close(method.predict(x), target, rtol=0, atol=1e-9)
    for mine, theirs in ((method.model, student), (method.teacher, teacher)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("quantile", [0.0, 0.03, 0.25, 0.5])
@pytest.mark.parametrize("kind", ["distinct", "tied", "zeros", "quarters"])
def test_the_mask_equals_a_sorted_interpolated_quantile(quantile: float, kind: str) -> None:
    random = np.random.default_rng(1)
    values = {
        "distinct": random.normal(size=101),
        "tied": random.integers(-3, 4, size=150).astype(float),
        "zeros": np.where(random.random(200) < 0.6, 0.0, random.normal(size=200)),
        "quarters": np.arange(1.0, 10.0),
    }[kind]
    gradients = [torch.from_numpy(values[:4]).view(2, 2), torch.from_numpy(values[4:])]
    expected = values**2 < np.quantile(values**2, quantile)
    assert np.array_equal(_least_informative(gradients, quantile).numpy() == 1.0, expected)


def test_without_prior_and_with_random_restoration_it_is_cotta_from_the_mean_bit_by_bit(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    mean = source.posterior[0]
    petal, cotta = Petal(weight=0.0, restore="random", p_th=0.0), CoTTA(p_th=0.0)
    petal.setup(source_model(), source)
    at_mean = source_model()
    with torch.no_grad():
        for weight, mu in zip(at_mean.parameters(), mean, strict=True):
            weight.copy_(mu)
    cotta.setup(at_mean, dataclasses.replace(source, generator=torch.Generator().manual_seed(0)))
    for _ in range(3):
        assert torch.equal(petal.predict(images), cotta.predict(images))


def test_the_prior_alone_pulls_towards_the_mean(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    distances = {}
    for weight in (0.0, 1e-3):
        method = Petal(weight=weight, p_th=0.0, lr=0.01, quantile=0.0)
        method.setup(source_model(), source)
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter.add_(0.5)
        for _ in range(20):
            method.predict(images)
        distances[weight] = sum(
            ((a - b) ** 2).sum().item() for a, b in zip(method.model.parameters(), source.posterior[0], strict=True)
        )
    assert distances[1e-3] < distances[0.0]


def test_only_the_student_has_gradients(source_model: Callable[..., nn.Module], source: Source, images: Tensor) -> None:
    method = Petal(p_th=0.0)
    method.setup(source_model(), source)
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=source.generator))
    assert not method.predict(images).requires_grad
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.model.parameters())
    assert all(weight.grad is None for other in (method.teacher, method.anchor) for weight in other.parameters())
    assert all(torch.equal(a, b) for a, b in zip(method.anchor.parameters(), source.posterior[0], strict=True))


def test_without_a_posterior_it_refuses(source_model: Callable[..., nn.Module], source: Source) -> None:
    with pytest.raises(UsageError, match="posterior"):
        Petal().setup(source_model(), dataclasses.replace(source, posterior=None))


@pytest.mark.parametrize(("p_th", "per_image"), [(0.0, 5), (1.0, 4 + 3)])
def test_counted_passes(stream: Callable[..., Any], images: Tensor, p_th: float, per_image: int) -> None:
    assert stream(Petal(p_th=p_th, views=3)).counts.passes == per_image * len(images)


@pytest.mark.parametrize("method", [Petal(p_th=0.0), Petal(p_th=1.0, views=2, restore="random")], ids=str)
def test_resumed_equals_uninterrupted(stream: Callable[..., Any], method: Petal) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    assert len(killed.logits) == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
