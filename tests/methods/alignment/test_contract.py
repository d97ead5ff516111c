"""What holds for every method that aligns the features of labelled and unlabelled examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.alignment.afn import Afn
from selfbench.methods.alignment.coral import Coral
from selfbench.methods.alignment.dann import Dann
from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.adaptation import AdaptationTask

METHODS = [
    pytest.param(Dann(), id="dann"),
    pytest.param(Coral(), id="coral"),
    pytest.param(Afn(weight=1.0), id="afn"),
    pytest.param(Afn(weight=1.0, kind="hard"), id="afn-hard"),
]


def _fresh(method: Any, **changes: Any) -> Any:
    return dataclasses.replace(method, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_the_alignment_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        one = _fresh(method, weight=weight)
        labeled, unlabeled = make_batches(make_view(one), unlabeled=8 * one.unlabeled_ratio())
        loss = one.loss(labeled, unlabeled)
        parts = torch.autograd.grad(loss, list(one.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[0.0]
    assert own.abs().max() > 1e-3
    torch.testing.assert_close(gradients[0.5] - gradients[0.0], 0.5 * own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_unlabelled_examples_matter(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    one = _fresh(method)
    labeled, unlabeled = make_batches(make_view(one), unlabeled=8)
    before = one.loss(labeled, unlabeled)
    unlabeled.weak = unlabeled.weak + 1
    parameters = list(one.model.parameters())
    changed = torch.autograd.grad(one.loss(labeled, unlabeled), parameters)
    own = torch.autograd.grad(before, parameters)
    assert max((a - b).abs().max().item() for a, b in zip(own, changed, strict=True)) > 1e-4


@pytest.mark.parametrize("augment", ["weak", "strong"])
@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_supervised_on_the_same_view_bit_by_bit(
    adapt: Callable[..., Any], method: Any, augment: str
) -> None:
    baseline, zero = adapt(Supervised(augment=augment)), adapt(_fresh(method, weight=0.0, augment=augment))
    assert zero.at == baseline.at
    assert len(zero.logits) == 3
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    expected = baseline.method.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in zero.method.model.state_dict().items())
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    weighted = adapt(_fresh(method, augment=augment))
    assert not np.array_equal(weighted.logits[-1], baseline.logits[-1])


@pytest.mark.parametrize("method", METHODS)
def test_without_unlabelled_examples_the_labelled_domains_are_aligned(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    """Where the method needs domains, as in WILDS 1.0; else there is nothing to align, and it is `supervised`."""
    values, one_domain = [], []
    for candidate in (_fresh(method), Supervised()):
        labeled, unlabeled = make_batches(make_view(candidate), unlabeled=0)
        values.append(candidate.loss(labeled, unlabeled).item())
        labeled.domains = labeled.domains * 0
        one_domain.append(candidate.loss(labeled, unlabeled).item())
    if "domains" in type(method).__selfbench__["needs"]:
        assert values[0] > values[1]
        assert one_domain[0] != values[0]
    else:
        assert values[0] == values[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(adapt: Callable[..., Any], method: Any) -> None:
    whole = adapt(_fresh(method))
    killed = adapt(_fresh(method), checkpoints=0, stop_after=5)
    resumed = adapt(_fresh(method))
    assert 0 < killed.counts.passes < whole.counts.passes
    logits = killed.logits + resumed.logits
    assert len(logits) == len(whole.logits) > 0
    for mine, theirs in zip(logits, whole.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("model", "discriminator"):
        if (module := getattr(whole.method, name, None)) is not None:
            state = getattr(resumed.method, name).state_dict()
            assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_counted_passes(adapt: Callable[..., Any], method: Any, ratio: int) -> None:
    steps, batch, per_labeled = 4, 8, 3 * (1 + ratio)
    result = adapt(_fresh(method, ratio=ratio), limit=steps * batch * per_labeled)
    assert result.counts.passes == result.at[-1] == steps * batch * per_labeled
    assert result.counts.forward == result.counts.backward == steps * batch * (1 + ratio)


@pytest.mark.parametrize("method", METHODS)
def test_strong_views_are_refused_where_the_task_has_none(
    make_view: Callable[..., Any], dropout_task: Any, method: Any
) -> None:
    class Plain(type(dropout_task)):
        strong = AdaptationTask.strong

    with pytest.raises(UsageError, match="Plain has no strong augmentation"):
        make_view(_fresh(method, augment="strong"), Plain())


@pytest.mark.parametrize("method", [Dann(), Coral()], ids=["dann", "coral"])
def test_one_domain_is_refused_unless_the_weight_is_zero(make_view: Callable[..., Any], method: Any) -> None:
    one = _fresh(method)
    view = make_view(one)
    view.labeled_domains, view.unlabeled_domains = (
        torch.zeros_like(part) for part in (view.labeled_domains, view.unlabeled_domains)
    )
    with pytest.raises(UsageError, match=r"PerExampleTask has 1; it needs a task whose"):
        one.setup(view.new_model(), view)
    _fresh(method, weight=0.0).setup(view.new_model(), view)


@pytest.mark.parametrize("method", [Dann(groups=3), Coral(groups=3)], ids=["dann", "coral"])
def test_batches_hold_equal_shares_of_domains(adapt: Callable[..., Any], method: Any) -> None:
    one, seen = _fresh(method), []
    own = one.loss

    def watched(labeled: Any, unlabeled: Any) -> Any:
        seen.append([np.bincount(batch.domains.numpy(), minlength=4).tolist() for batch in (labeled, unlabeled)])
        return own(labeled, unlabeled)

    one.loss = watched
    try:
        adapt(one, limit=200)
    finally:
        del one.loss
    assert len(seen) > 2
    for labeled, unlabeled in seen:
        assert sorted(labeled) == [0, 2, 3, 3]
        assert unlabeled == [0, 0, 4, 4]
