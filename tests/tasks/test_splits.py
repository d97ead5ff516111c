"""Splits with a few labels a class."""

from __future__ import annotations

import numpy as np

from selfbench.suite.seeds import rng
from selfbench.tasks.splits import few_labels


def test_the_parts_are_disjoint_balanced_and_whole() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(300) % 5)
    split = few_labels(labels, 240, rng(1, "test"), labeled=3, validation=4)
    assert np.array_equal(split.labels, labels[split.labeled])
    assert np.array_equal(np.bincount(split.labels), [3] * 5)
    assert np.array_equal(np.bincount(labels[split.validation]), [4] * 5)
    assert np.array_equal(split.test, np.arange(240, 300))
    parts = np.concatenate([split.labeled, split.validation, split.unlabeled])
    assert np.array_equal(np.sort(parts), np.arange(240))


def test_positions_in_the_labelled_part_tell_no_class() -> None:
    labels = np.arange(1000) % 5
    split = few_labels(labels, 900, rng(1, "test"), labeled=20, validation=1)
    assert not np.array_equal(split.labels, np.sort(split.labels))
    assert abs(np.corrcoef(np.arange(100), split.labels)[0, 1]) < 0.3
