"""What holds for every successor of FixMatch: gradient, weight zero, resumption, counted passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.adamatch import AdaMatch
from selfbench.methods.self_training.flexmatch import FlexMatch
from selfbench.methods.self_training.freematch import FreeMatch
from selfbench.methods.self_training.softmatch import SoftMatch

METHODS = [
    pytest.param(FlexMatch(threshold=0.4, ratio=2), 3 * (1 + 2 * 2), id="flexmatch"),
    pytest.param(FreeMatch(decay=0.9, ratio=2), 3 * (1 + 2 * 2), id="freematch"),
    pytest.param(SoftMatch(decay=0.9, ratio=2), 3 * (1 + 2 * 2), id="softmatch"),
    pytest.param(AdaMatch(decay=0.9, ratio=2), 3 * (4 + 2 * 2), id="adamatch"),
]
each = pytest.mark.parametrize(("method", "per_labeled"), METHODS)


@each
def test_the_unlabelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any, per_labeled: int
) -> None:
    gradients = {}
    for weight in (1.0, 2.0, 4.0):
        one = dataclasses.replace(method, weight=weight)
        view = make_view(one)
        view.generator.manual_seed(0)
        parts = torch.autograd.grad(one.loss(*make_batches(view)), list(one.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[2.0] - gradients[1.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[4.0] - gradients[1.0], 3 * own, rtol=0, atol=1e-12)


@each
def test_no_gradient_flows_through_the_targets(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any, per_labeled: int
) -> None:
    """Weak views of unlabelled examples only make targets: moving them a little moves no loss."""
    one = dataclasses.replace(method)
    view = make_view(one)
    labeled, unlabeled = make_batches(view)
    weak = unlabeled.weak.clone().requires_grad_(True)
    unlabeled.__dict__["weak"] = weak
    [gradient] = torch.autograd.grad(one.loss(labeled, unlabeled), weak, allow_unused=True, materialize_grads=True)
    assert not gradient.any()


@each
def test_weight_zero_is_the_supervised_baseline_bit_by_bit(
    adapt: Callable[..., Any], method: Any, per_labeled: int
) -> None:
    baseline, zero = adapt(Supervised()), adapt(dataclasses.replace(method, weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(adapt(dataclasses.replace(method)).logits[-1], baseline.logits[-1])


@each
@pytest.mark.parametrize("stop_after", [3, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(
    adapt: Callable[..., Any], method: Any, per_labeled: int, stop_after: int
) -> None:
    whole = adapt(dataclasses.replace(method))
    killed = adapt(dataclasses.replace(method), checkpoints=0, stop_after=stop_after)
    resumed = adapt(dataclasses.replace(method))
    assert 0 < killed.counts.passes < whole.counts.passes
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name, value in vars(whole.method).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(resumed.method, name)), name


@each
def test_counted_passes(adapt: Callable[..., Any], method: Any, per_labeled: int) -> None:
    assert adapt(dataclasses.replace(method), limit=4 * 8 * per_labeled).counts.passes == 4 * 8 * per_labeled


@each
def test_under_bf16_the_state_stays_in_the_type_of_the_weights(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any, per_labeled: int
) -> None:
    one = dataclasses.replace(method)
    view = make_view(one)
    one.setup(one.model.float(), view)
    view.labeled, view.unlabeled = view.labeled.float(), view.unlabeled.float()
    before = {name: value.dtype for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = one.loss(*make_batches(view))
        loss = one.loss(*make_batches(view))
    loss.backward()
    assert torch.isfinite(loss)
    assert before == {name: value.dtype for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
