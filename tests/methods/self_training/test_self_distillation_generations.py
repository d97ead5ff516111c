from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.self_distillation_generations import (
    SelfDistillationGenerations,
    reciprocal_ranks,
)

BATCH = 8


def taught(method: Any) -> None:
    """The method in its first generation, with a student that has moved on."""
    method.round = method.labelled_in = 1
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=method.view.generator, dtype=parameter.dtype))
        method._begin()
        for parameter in method.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=method.view.generator, dtype=parameter.dtype))


def test_reciprocal_ranks() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]] * 4)
    assert reciprocal_ranks(logits, torch.arange(4), 10).tolist() == pytest.approx([1.0, 1 / 3, 1 / 2, 1 / 4])
    assert reciprocal_ranks(logits, torch.arange(4), 2).tolist() == pytest.approx([1.0, 0.0, 1 / 2, 0.0])


@pytest.mark.parametrize("coefficient", ["map", "none"])
def test_the_loss_equals_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], coefficient: str
) -> None:
    method = SelfDistillationGenerations(weight=0.7, temperature=3.0, coefficient=coefficient, k=2)
    labeled, unlabeled = make_batches(make_view(method))
    taught(method)
    entropies, apart, ranks = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), []
    for x, y in zip(labeled.weak, labeled.y.tolist(), strict=True):
        z, g = method.model(x[None])[0], method.guide(x[None])[0].tolist()
        entropies = entropies + z.exp().sum().log() - z[y]
        rank = sorted(range(4), key=lambda c: -g[c]).index(y) + 1
        ranks.append(1 / rank if rank <= 2 else 0.0)
        total = sum(math.exp(v / 3) for v in g)
        for c, v in enumerate(g):
            q = math.exp(v / 3) / total
            apart = apart + q * (math.log(q) - (z[c] / 3 - (z / 3).exp().sum().log()))
    assert len(set(ranks)) > 1
    c = sum(ranks) / BATCH if coefficient == "map" else 1.0
    expected = entropies / BATCH + 0.7 * c * 9 * apart / BATCH
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    parameters = list(method.model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert not any(parameter.requires_grad for parameter in method.guide.parameters())


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(SelfDistillationGenerations(weight=0.0))
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(SelfDistillationGenerations()).logits[-1], baseline.logits[-1])


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    """A first training of 5 steps, two generations of 3 steps."""
    limit = 5 * 3 * BATCH + 2 * 3 * 4 * BATCH
    result = adapt(SelfDistillationGenerations(teacher=5 * 3 * BATCH / limit), limit=limit)
    assert result.counts.passes == limit
    assert result.method.round == 2


@pytest.mark.parametrize("stop_after", [3, 18, 25, 35])
def test_a_run_killed_in_any_generation_resumes_bit_equal(adapt: Callable[..., Any], stop_after: int) -> None:
    whole = adapt(SelfDistillationGenerations())
    killed = adapt(SelfDistillationGenerations(), checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(SelfDistillationGenerations())
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


def slow_map(predicted: list[float], place: int, k: int) -> float:
    """Average precision at k of one kind of hit, as in the authors' code: the best `k` places, the best first."""
    best = sorted(range(len(predicted)), key=lambda at: -predicted[at])[:k]
    hits = [at in range(place - 5, place + 5) for at in best]
    return 1 / (hits.index(True) + 1) if True in hits else 0.0


def test_ranks_of_places_near_the_true_one() -> None:
    logits = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    places = torch.randint(0, 40, (300,), generator=torch.Generator().manual_seed(1))
    expected = [slow_map(row, place, 4) for row, place in zip(logits.tolist(), places.tolist(), strict=True)]
    assert {0.0, 1.0, 0.5} < set(expected)
    assert reciprocal_ranks(logits, places, 4, 5).tolist() == pytest.approx(expected)


@pytest.fixture
def spans(dropout_task: Any) -> Any:
    """A task of spans: each example has thirty places, at two of which its answer begins and ends."""

    class Places(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(6, 2 * 30)
            self.double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).view(len(x), 2, 30)

    class OfSpans(type(dropout_task)):
        net = Places

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    return OfSpans()


@pytest.mark.parametrize("coefficient", ["map", "none"])
def test_the_loss_of_spans_equals_a_loop_over_both_ends(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], spans: Any, coefficient: str
) -> None:
    method = SelfDistillationGenerations(weight=0.7, coefficient=coefficient, k=6)
    labeled, unlabeled = make_batches(make_view(method, spans))
    labeled.y = torch.stack([labeled.y * 5 + 2, labeled.y * 5 + 9], dim=1)
    first = method.loss(labeled, unlabeled)
    assert first.item() == spans.supervised(method.model, labeled.weak, labeled.y).item()
    taught(method)
    entropies, apart, ranks = [], [], []
    for end in range(2):
        for x, y in zip(labeled.weak, labeled.y[:, end].tolist(), strict=True):
            z, g = method.model(x[None])[0, end], method.guide(x[None])[0, end].detach()
            entropies.append(z.exp().sum().log() - z[y])
            ranks.append(slow_map(g.tolist(), y, 6))
            q = (g / 2).softmax(0)
            apart.append((q * (q.log() - (z / 2).log_softmax(0))).sum())
    assert len(set(ranks)) > 2
    c = sum(ranks) / (2 * BATCH) if coefficient == "map" else 1.0
    expected = torch.stack(entropies).mean() + 0.7 * c * 4 * torch.stack(apart).mean()
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    parameters = list(method.model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_places_where_nothing_can_stand_are_no_difference(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], spans: Any
) -> None:
    method = SelfDistillationGenerations()
    labeled, unlabeled = make_batches(make_view(method, spans))
    labeled.y = torch.stack([labeled.y, labeled.y + 3], dim=1)
    taught(method)

    def hide(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        hidden = torch.arange(30) > 20
        return logits.masked_fill(hidden, -1e4)

    for model in (method.model, method.guide):
        model.register_forward_hook(hide)
    loss = method.loss(labeled, unlabeled)
    gradients = torch.autograd.grad(loss, list(method.model.parameters()))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0].view(2, 30, 6)[:, 21:].any()
