"""Query strategies against loops over examples that know nothing of arrays, and what the active text tasks declare."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.protocols.active import ActiveTask, Shown
from selfbench.tasks.text.active import balanced
from selfbench.tasks.text.queries import (
    STRATEGIES,
    WITH_FEATURES,
    breaking_ties,
    contrastive,
    divergence_from_neighbours,
    entropy,
    random,
)

U, L, K, D = 60, 25, 4, 7


def shown(seed: int = 0) -> Shown:
    draw = np.random.default_rng(seed)
    arrays = (draw.normal(size=(n, width)) * 2.0 for n in (U, L) for width in (K, D))
    logits, features, labeled_logits, labeled_features = arrays
    return Shown(logits, features, labeled_logits, labeled_features)


def probabilities(logits: np.ndarray) -> list[float]:
    powers = [math.exp(float(value)) for value in logits]
    return [power / sum(powers) for power in powers]


def best(scores: list[float], size: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place])[:size]


@pytest.mark.parametrize("seed", range(5))
def test_entropy_and_breaking_ties_equal_loops(seed: int) -> None:
    seen, draw = shown(seed), np.random.default_rng(0)
    ps = [probabilities(row) for row in seen.logits]
    entropies = [-sum(p * math.log(p) for p in row) for row in ps]
    assert entropy(seen, 9, draw).tolist() == best(entropies, 9)
    margins = [sorted(row)[-1] - sorted(row)[-2] for row in ps]
    assert breaking_ties(seen, 9, draw).tolist() == best([-value for value in margins], 9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("neighbours", [1, 10, 40])
def test_contrastive_equals_a_loop_over_pairs(seed: int, neighbours: int) -> None:
    seen = shown(seed)
    scores = []
    for features, logits in zip(seen.features, seen.logits, strict=True):
        distance = [math.dist(features, other) for other in seen.labeled_features]
        near = sorted(range(L), key=lambda place: distance[place])[:neighbours]
        q = probabilities(logits)
        divergences = []
        for place in near:
            p = probabilities(seen.labeled_logits[place])
            divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        scores.append(sum(divergences) / len(divergences))
    np.testing.assert_allclose(divergence_from_neighbours(seen, neighbours), scores, rtol=0, atol=1e-10)
    if neighbours == 10:
        assert contrastive(seen, 9, np.random.default_rng(0)).tolist() == best(scores, 9)


def test_random_draws_every_example_as_often_and_none_twice() -> None:
    seen, draw, counts = shown(), np.random.default_rng(0), np.zeros(U)
    for _ in range(3000):
        places = random(seen, 6, draw)
        assert len(set(places.tolist())) == 6
        counts[places] += 1
    assert np.abs(counts / 3000 - 6 / U).max() < 0.025


def test_large_logits_stay_finite_and_ties_go_to_the_first() -> None:
    seen = Shown(np.array([[1e4, 0.0], [0.0, 1e4], [5.0, 5.0], [7.0, 7.0]]), np.eye(4), np.zeros((1, 2)), np.eye(4)[:1])
    for strategy in (entropy, breaking_ties, contrastive):
        assert np.isfinite(strategy(seen, 4, np.random.default_rng(0))).all()
    assert entropy(seen, 2, np.random.default_rng(0)).tolist() == [2, 3]
    assert breaking_ties(seen, 3, np.random.default_rng(0)).tolist() == [2, 3, 0]


def test_every_active_task_declares_a_strategy_and_features_where_it_looks_at_them() -> None:
    entries = [entry for entry in registry.entries("task").values() if "active-learning" in entry.options["tags"]]
    assert len(entries) >= 20
    for entry in entries:
        task = entry.load()()
        assert isinstance(task, ActiveTask)
        assert task.strategy in STRATEGIES
        assert task.query_features == (task.strategy in WITH_FEATURES)
        budget = task.start + task.rounds * task.query_size
        assert budget == (225 if entry.name.endswith("-225") else 130)
        assert f"{budget} labels" in entry.options["title"]
        assert entry.options["bundle"]


@pytest.mark.parametrize(("classes", "size"), [(4, 30), (8, 30), (6, 30), (20, 30), (20, 25), (2, 25), (5, 3)])
def test_the_start_set_is_as_balanced_as_can_be(classes: int, size: int) -> None:
    labels = np.arange(900) % classes
    split = balanced(labels, 700, np.random.default_rng(1), size, 5)
    counts = np.bincount(labels[split.labeled], minlength=classes)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(split.labels, labels[split.labeled])
    whole = np.concatenate([split.labeled, split.unlabeled, split.validation])
    assert np.array_equal(np.sort(whole), np.arange(700))
    assert np.array_equal(split.unlabeled, np.sort(split.unlabeled))
    assert len(split.validation) == 5 * classes
    if size % classes:
        others = [balanced(labels, 700, np.random.default_rng(seed), size, 5) for seed in range(6)]
        assert len({tuple(np.bincount(labels[other.labeled], minlength=classes)) for other in others}) > 1
