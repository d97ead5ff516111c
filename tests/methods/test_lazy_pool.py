"""Examples that are made when they are asked for: the run is bit by bit that of examples made at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.fst_wide import FstWide
from selfbench.methods.self_training.fixmatch import FixMatch
from selfbench.methods.self_training.noisy_student import NoisyStudent
from selfbench.suite.protocols.adaptation import Recipe, Split
from selfbench.suite.protocols.optimisation import constant
from selfbench.suite.protocols.pool import LazyPool

CPU = torch.device("cpu")


class Asked:
    """Makes examples out of their numbers and remembers how many were asked for at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, indices: np.ndarray) -> Tensor:
        self.sizes.append(len(indices))
        return torch.from_numpy(np.stack([indices, 10 * indices], axis=1))


def test_a_pool_answers_like_the_tensor_of_its_examples() -> None:
    asked, indices = Asked(), np.array([7, 3, 5, 1, 9])
    pool, tensor = LazyPool(asked, indices, CPU, batch=2), asked(indices)
    asked.sizes.clear()
    assert len(pool) == 5
    assert asked.sizes == []
    for chosen in (torch.tensor([4, 0, 0]), torch.tensor([], dtype=torch.int64), tensor[:, 0] > 4):
        assert torch.equal(pool[chosen], tensor[chosen])
    assert torch.equal(pool[1:3], tensor[1:3])
    assert asked.sizes == [3, 0, 3, 2]
    asked.sizes.clear()
    for parts in (pool.split(1000), torch.split(pool, 1000)):  # type: ignore[no-untyped-call, call-overload]
        assert torch.equal(torch.cat(list(parts)), tensor)
    assert asked.sizes == [2, 2, 1, 2, 2, 1]


@pytest.mark.parametrize(
    "method", [Supervised(), FixMatch(threshold=0.3, ratio=2), NoisyStudent(), FstWide(threshold=0.3)], ids=str
)
def test_a_lazy_run_equals_one_with_all_examples_in_memory(
    adapt: Callable[..., Any], dropout_task: Any, method: Any
) -> None:
    lazy_task = type("LazyTask", (type(dropout_task),), {"lazy": True})()
    whole, lazy = adapt(dataclasses.replace(method), dropout_task), adapt(dataclasses.replace(method), lazy_task)
    assert isinstance(lazy.method.view.unlabeled, LazyPool)
    assert isinstance(whole.method.view.unlabeled, Tensor)
    assert whole.at == lazy.at
    for mine, theirs in zip(whole.logits, lazy.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_evaluation_takes_as_many_at_a_time_as_the_task_says(adapt: Callable[..., Any], dropout_task: Any) -> None:
    seen: list[int] = []

    class Task(type(dropout_task)):  # type: ignore[misc]
        lazy = True
        evaluation_batch = 7

        def inputs(self, public: Any, indices: Any) -> Tensor:
            seen.append(len(indices))
            return super().inputs(public, indices)

    small, whole = adapt(Supervised(), Task()), adapt(Supervised(), dropout_task)
    assert seen.count(7) >= 5 * 3
    np.testing.assert_allclose(small.logits[-1], whole.logits[-1], atol=1e-6)


def test_long_gradients_are_shortened(adapt: Callable[..., Any], dropout_task: Any) -> None:
    plain = Recipe(lr=0.05, batch_size=8, ema=0.0, momentum=0.0, weight_decay=0.0, schedule=constant)

    def moved(recipe: Recipe) -> float:
        method = adapt(Supervised(), type("Task", (type(dropout_task),), {"recipe": recipe})(), limit=24.0 * 4).method
        start = method.view.new_model().parameters()
        with torch.no_grad():
            return float(sum((a - b).square().sum() for a, b in zip(method.model.parameters(), start, strict=True)))

    assert 0 < moved(dataclasses.replace(plain, max_norm=1e-3)) <= (4 * 0.05 * 1e-3) ** 2 * (1 + 1e-9)
    assert moved(dataclasses.replace(plain, max_norm=1e6)) == moved(plain) > 1e-4


def test_a_second_test_set_may_not_be_shown() -> None:
    none, some = np.arange(0), np.arange(3)
    with pytest.raises(ValueError, match="test examples"):
        Split(some, some, none, none, test=none, source_test=some)
