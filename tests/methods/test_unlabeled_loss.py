"""What holds for every method that adds an unlabelled loss to the supervised one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.mean_teacher import MeanTeacher
from selfbench.methods.self_training.fixmatch import FixMatch
from selfbench.methods.self_training.pseudo_label import PseudoLabel

METHODS = [
    pytest.param(PseudoLabel(threshold=0.3), id="pseudo-label"),
    pytest.param(FixMatch(threshold=0.3, ratio=2), id="fixmatch"),
    pytest.param(MeanTeacher(), id="mean-teacher"),
]


def _fresh(method: Any, **changes: Any) -> Any:
    return dataclasses.replace(method, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_the_unlabelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        one = _fresh(method, weight=weight)
        labeled, unlabeled = make_batches(make_view(one), unlabeled=8 * one.unlabeled_ratio())
        # The model has no batch norm, through which unlabelled examples would move the supervised part too.
        parts = torch.autograd.grad(one.loss(labeled, unlabeled), list(one.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[0.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_step_without_unlabelled_examples_is_the_supervised_one(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    one, baseline = _fresh(method), Supervised()
    for candidate in (one, baseline):
        labeled, unlabeled = make_batches(make_view(candidate), unlabeled=0)
        candidate.value = candidate.loss(labeled, unlabeled).item()
    assert one.value == baseline.value
