"""What holds for every method that asks for consistent predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.consistency.mixmatch import MixMatch
from selfbench.methods.consistency.pi_model import PiModel
from selfbench.methods.consistency.uda import Uda
from selfbench.methods.consistency.vat import Vat

METHODS = [
    pytest.param(PiModel(), id="pi-model"),
    pytest.param(PiModel(both=False), id="pi-model-one"),
    pytest.param(Vat(epsilon=1.0), id="vat"),
    pytest.param(Vat(epsilon=1.0, steps=2, entropy=0.5, ramp=0.4), id="vat-entropy"),
    pytest.param(Uda(threshold=0.3, ratio=2), id="uda"),
    pytest.param(Uda(threshold=0.3, ratio=2, annealing="linear"), id="uda-annealing"),
    pytest.param(MixMatch(weight=5.0), id="mixmatch"),
]
each = pytest.mark.parametrize("method", METHODS)


def _fresh(method: Any, **changes: Any) -> Any:
    return dataclasses.replace(method, **changes)


def _gradient(method: Any, labeled: Any, unlabeled: Any) -> torch.Tensor:
    parts = torch.autograd.grad(method.loss(labeled, unlabeled), list(method.model.parameters()))
    return torch.cat([part.flatten() for part in parts])


@each
def test_the_unlabelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    gradients = []
    for weight in (1.0, 2.0, 4.0):
        one = _fresh(method, weight=weight)
        gradients.append(_gradient(one, *make_batches(make_view(one), unlabeled=8 * one.unlabeled_ratio())))
    own = gradients[1] - gradients[0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[2] - gradients[0], 3 * own, rtol=0, atol=1e-12)


@each
def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any], method: Any) -> None:
    baseline, zero = adapt(Supervised()), adapt(_fresh(method, weight=0.0))
    assert zero.at == baseline.at
    assert len(zero.logits) == 3
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    expected = baseline.method.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in zero.method.model.state_dict().items())
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    weighted = adapt(_fresh(method))
    assert not np.array_equal(weighted.logits[-1], baseline.logits[-1])


@each
def test_the_loss_of_a_step_without_unlabelled_examples_is_the_supervised_one(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    values = []
    for candidate in (_fresh(method), Supervised()):
        labeled, unlabeled = make_batches(make_view(candidate), unlabeled=0)
        values.append(candidate.loss(labeled, unlabeled).item())
    assert values[0] == values[1]


@each
def test_a_resumed_run_equals_an_uninterrupted_one(adapt: Callable[..., Any], method: Any) -> None:
    whole = adapt(_fresh(method))
    killed = adapt(_fresh(method), checkpoints=0, stop_after=5)
    resumed = adapt(_fresh(method))
    assert 0 < killed.counts.passes < whole.counts.passes
    logits = killed.logits + resumed.logits
    assert len(logits) == len(whole.logits) > 0
    for mine, theirs in zip(logits, whole.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    state = resumed.method.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.method.model.state_dict().items())
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize(
    ("method", "per_labeled", "per_unlabeled"),
    [
        (PiModel(), 6, 6),
        (PiModel(both=False), 4, 4),
        (Vat(), 3, 1 + 3 + 3),
        (Vat(steps=3), 3, 1 + 9 + 3),
        (Vat(entropy=0.1), 3, 3 + 3 + 3),
        (Uda(), 3, 6),
        (MixMatch(), 3, 2 + 6),
    ],
    ids=["pi-model", "pi-model-one", "vat", "vat-steps", "vat-entropy", "uda", "mixmatch"],
)
def test_counted_passes(
    adapt: Callable[..., Any], method: Any, per_labeled: int, per_unlabeled: int, ratio: int
) -> None:
    limit = 4 * 8 * (per_labeled + ratio * per_unlabeled)
    result = adapt(_fresh(method, ratio=ratio), limit=limit)
    assert result.counts.passes == result.at[-1] == limit


@each
def test_only_the_supervised_or_joint_pass_moves_running_statistics(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any, method: Any
) -> None:
    one = _fresh(method)
    labeled, unlabeled = make_batches(make_view(one, dropout_task), unlabeled=8 * one.unlabeled_ratio())
    training = [module.training for module in one.model.modules()]
    one.loss(labeled, unlabeled)
    assert one.model[1].num_batches_tracked.item() == 1
    assert [module.training for module in one.model.modules()] == training
