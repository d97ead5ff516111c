from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.pretraining.swav import Swav, assignments, swapped_prediction

SMALL = {"hidden": 16, "size": 8, "prototypes": 2, "large": 2, "small": 1, "small_side": 0.5, "frozen": 3}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    ).double()  # fmt: skip


@pytest.fixture
def pictures(dropout_task: Any) -> Any:
    """The tiny task with its numbers as pictures of 16 x 16 pixels."""

    def inputs(self: Any, public: Any, indices: Any) -> Tensor:
        numbers = torch.from_numpy(np.array(public["x"][indices])).sigmoid()
        return numbers.view(-1, 3, 1, 2).repeat(1, 1, 16, 8)

    return type("Pictures", (type(dropout_task),), {"model": lambda self: network(), "inputs": inputs})()


def test_assignments_equal_scalings_of_the_exponentials() -> None:
    scores = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = (scores / 0.3).exp()
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True) / 5
        q = q / q.sum(dim=1, keepdim=True) / 7
    torch.testing.assert_close(assignments(scores, 0.3, 3), 7 * q, rtol=0, atol=1e-12)
    many = assignments(scores, 0.3, 200)
    torch.testing.assert_close(many.sum(dim=1), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(many.sum(dim=0), torch.full((5,), 7 / 5, dtype=torch.float64), rtol=0, atol=1e-6)
    sharp = assignments(torch.randn(64, 20, generator=torch.Generator().manual_seed(1)), 0.01, 3)
    assert sharp.isfinite().all()


def test_the_loss_equals_a_loop_over_pairs_of_crops() -> None:
    scores = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    slow = torch.zeros((), dtype=torch.float64)
    for s in range(2):
        q = assignments(scores[s].detach(), 0.2, 3)
        for v in range(4):
            if v != s:
                for b in range(3):
                    z = scores[v, b] / 0.1
                    log_p = z - z.exp().sum().log()
                    slow = slow - (q[b] * log_p).sum() / (2 * 3 * 3)
    loss = swapped_prediction(scores, 0.1, 0.2, 3)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    mine, theirs = (torch.autograd.grad(value, scores)[0] for value in (loss, slow))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_equal_crops_of_clustered_pictures_have_a_small_loss() -> None:
    far = 2 * torch.eye(4).repeat(1, 2, 1).repeat(3, 1, 1)
    assert swapped_prediction(far, 0.1, 0.05, 3) < 1e-3
    assert swapped_prediction(0 * far, 0.1, 0.05, 3) == pytest.approx(math.log(4), abs=1e-6)


def test_a_step_of_the_method_is_the_loss_of_its_crops(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], pictures: Any
) -> None:
    from selfbench.methods.common.contrastive_views import strong_views

    method = Swav(**SMALL)
    labeled, unlabeled = make_batches(make_view(method, pictures))
    state = method.view.generator.get_state()
    loss = method.loss(labeled, unlabeled)
    norms = method.clusters.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-12)
    assert not method.clusters.weight.requires_grad
    method.view.generator.set_state(state)
    large = [strong_views(unlabeled.x, method.view.generator, 0.14, 1.0, strength=2.0) for _ in range(2)]
    [small] = [strong_views(unlabeled.x, method.view.generator, 0.05, 0.14, 8, 2.0)]
    assert small.shape[2:] == (8, 8)
    method.model.train()
    features = torch.cat([method.model[:-1](torch.cat(large)), method.model[:-1](small)])
    z = nn.functional.normalize(method.projection(features), dim=1)
    scores = (z @ method.clusters.weight.T).view(3, len(unlabeled), -1)
    assert loss.item() == pytest.approx(swapped_prediction(scores, 0.1, 0.03, 3).item(), abs=1e-12)
    loss.backward()
    assert method.model[0].weight.grad.abs().sum() > 0
    assert method.model[-1].weight.grad is None
    method.steps = 3
    assert torch.autograd.grad(method.loss(labeled, unlabeled), method.clusters.weight)[0].abs().sum() > 0


def test_counted_passes_are_those_of_all_crops(adapt: Callable[..., Any], pictures: Any) -> None:
    # Steps of 8 pictures in 3 crops, then of 8 labelled ones.
    result = adapt(Swav(pretrain=0.5, **SMALL), task=pictures, limit=2 * 720)
    assert result.counts.passes == 10 * 8 * 9 + 30 * 8 * 3
    assert result.method.steps == 40


def test_it_moves_what_the_baseline_does_not(adapt: Callable[..., Any], pictures: Any) -> None:
    trained, baseline = adapt(Swav(**SMALL), task=pictures), adapt(Supervised(), task=pictures)
    assert not np.array_equal(trained.logits[-1], baseline.logits[-1])
    assert trained.method.clusters.weight.requires_grad


def test_without_pretraining_it_is_the_baseline_bit_by_bit(adapt: Callable[..., Any], pictures: Any) -> None:
    baseline, zero = adapt(Supervised(), task=pictures), adapt(Swav(pretrain=0.0), task=pictures)
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)


@pytest.mark.parametrize("stop_after", [2, 12, 30])
def test_a_killed_run_goes_on_in_its_phase(adapt: Callable[..., Any], pictures: Any, stop_after: int) -> None:
    whole = adapt(Swav(**SMALL), task=pictures)
    killed = adapt(Swav(**SMALL), task=pictures, checkpoints=0, stop_after=stop_after)
    resumed = adapt(Swav(**SMALL), task=pictures)
    assert 0 < killed.counts.passes < whole.counts.passes
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
