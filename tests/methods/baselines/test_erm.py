"""`erm`, `erm-augment` and `supervised` are one method on three views of the labelled examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.erm import Erm
from selfbench.methods.baselines.erm_augment import ErmAugment
from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite.registry import get

PAIRS = [(Erm(), "none", "x"), (ErmAugment(), "strong", "strong")]


@pytest.mark.parametrize(("method", "augment", "view_name"), PAIRS, ids=["erm", "erm-augment"])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any, augment: str, view_name: str
) -> None:
    labeled, unlabeled = make_batches(make_view(method))
    parameters = list(method.model.parameters())
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(getattr(labeled, view_name), labeled.y, strict=True):
        z = method.model(x[None])[0]
        total = total + z.exp().sum().log() - z[y]
    expected = torch.autograd.grad(total / len(labeled), parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(total.item() / len(labeled), abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("method", "augment", "view_name"), PAIRS, ids=["erm", "erm-augment"])
def test_a_run_is_that_of_supervised_on_the_same_view(
    adapt: Callable[..., Any], method: Any, augment: str, view_name: str
) -> None:
    mine, theirs, weak = adapt(dataclasses.replace(method)), adapt(Supervised(augment=augment)), adapt(Supervised())
    assert len(mine.logits) == 3
    for one, other in zip(mine.logits, theirs.logits, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(mine.logits[-1], weak.logits[-1])
    assert mine.counts.passes == theirs.counts.passes
    assert adapt(dataclasses.replace(method), limit=4 * 24).counts.passes == 4 * 24
    assert method.unlabeled_ratio() == 0


def test_only_the_augmented_one_asks_for_a_strong_view() -> None:
    assert get("method", "erm").options.get("needs", ()) == ()
    assert tuple(get("method", "erm-augment").options["needs"]) == ("strong-augmentation",)
