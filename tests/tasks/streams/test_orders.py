"""Orders are permutations with the structure they promise, and pure functions of their generator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from selfbench.suite.scoring import label_correlation
from selfbench.tasks.streams.orders import (
    Domain,
    class_sorted,
    continual,
    correlated,
    gradual,
    imbalanced,
    mixed,
    recurring,
    separate,
    then,
)

K, PER_CLASS, DOMAINS = 5, 40, 3
N = K * PER_CLASS
LABELS = np.tile(np.repeat(np.arange(K), PER_CLASS), DOMAINS)
PLAIN = [Domain(f"d{number}", np.arange(number * N, (number + 1) * N)) for number in range(DOMAINS)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


BUILD = {
    "continual": lambda g: continual(PLAIN, g, 32),
    "mixed": lambda g: mixed(PLAIN, g, 32),
    "class_sorted": lambda g: class_sorted(PLAIN, LABELS, g, 32),
    "correlated": lambda g: correlated(PLAIN, LABELS, 0.1, g, 32),
    "recurring": lambda g: recurring(PLAIN, g, 32, rounds=4),
    "gradual": lambda g: gradual([PLAIN], g, 32),
    "separate": lambda g: separate(PLAIN, g, 32),
    "imbalanced": lambda g: imbalanced(PLAIN, LABELS, 50.0, g, 32),
}


@pytest.mark.parametrize("name", BUILD)
def test_equal_generators_give_equal_streams(name: str) -> None:
    assert BUILD[name](rng(1)).sha256 == BUILD[name](rng(1)).sha256
    assert BUILD[name](rng(1)).sha256 != BUILD[name](rng(2)).sha256


@pytest.mark.parametrize("name", ["continual", "mixed", "class_sorted", "correlated", "separate"])
def test_every_image_comes_once_in_its_own_domain(name: str) -> None:
    stream = BUILD[name](rng())
    assert np.array_equal(np.sort(stream.indices), np.arange(DOMAINS * N))
    assert np.array_equal(stream.domains, stream.indices // N)
    assert stream.cuts[-1] == DOMAINS * N


@pytest.mark.parametrize("name", ["continual", "class_sorted", "correlated"])
def test_domains_follow_one_another(name: str) -> None:
    assert np.all(np.diff(BUILD[name](rng()).domains) >= 0)


def test_mixed_mixes() -> None:
    first = mixed(PLAIN, rng(), 32).domains[:N]
    assert np.bincount(first, minlength=DOMAINS).min() > N // DOMAINS // 2


def test_sorted_is_sorted_within_domains() -> None:
    labels = LABELS[class_sorted(PLAIN, LABELS, rng(), 32).indices]
    for start in range(0, DOMAINS * N, N):
        assert np.all(np.diff(labels[start : start + N]) >= 0)


def test_correlation_falls_with_gamma() -> None:
    values = []
    for gamma in (0.01, 0.1, 1.0, 1000.0):
        stream = correlated(PLAIN, LABELS, gamma, rng(), 32)
        values.append(label_correlation(LABELS[stream.indices]))
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.3  # below 1 - 1 / K: classes that drew the same slot are shuffled with one another
    assert abs(values[-1]) < 0.05


def test_correlation_of_known_streams() -> None:
    shuffled = continual(PLAIN, rng(), 32)
    assert abs(label_correlation(LABELS[shuffled.indices])) < 0.06
    ordered = class_sorted(PLAIN, LABELS, rng(), 32)
    assert label_correlation(LABELS[ordered.indices]) == pytest.approx(1 - 1 / K, abs=0.03)


def test_gamma_must_be_positive() -> None:
    with pytest.raises(ValueError, match="gamma"):
        correlated(PLAIN, LABELS, 0.0, rng(), 32)


def test_recurring_visits_all_domains_in_every_round() -> None:
    stream = recurring(PLAIN, rng(), 32, rounds=4)
    rounds = stream.indices.reshape(4, DOMAINS * N)
    for visited in rounds:
        assert np.array_equal(np.sort(visited), np.arange(DOMAINS * N))
    assert not np.array_equal(rounds[0], rounds[1])
    assert len(stream.domain_names) == DOMAINS


def test_gradual_climbs_and_descends() -> None:
    stream = gradual([PLAIN], rng(), 32)
    steps = stream.domains.reshape(2 * DOMAINS - 1, N)
    assert [step[0] for step in steps] == [0, 1, 2, 1, 0]
    assert all(len(np.unique(step)) == 1 for step in steps)


def test_separate_starts_every_domain_with_a_batch_of_its_own_and_a_reset() -> None:
    stream = separate(PLAIN, rng(), 32)
    starts = stream.cuts[stream.resets]
    assert list(starts) == [N, 2 * N]
    for start, stop in itertools.pairwise(stream.cuts):
        assert len(set(stream.domains[start:stop])) == 1
    sizes = np.diff(stream.cuts)
    assert sorted(set(sizes)) == [N % 32, 32]
    assert list(separate(PLAIN, rng(), N).resets) == [1, 2]


@pytest.mark.parametrize("ratio", [1.0, 4.0, 500_000.0])
def test_imbalanced_gives_every_class_a_turn_in_which_it_prevails(ratio: float) -> None:
    draws = 20
    stream = imbalanced(PLAIN, LABELS, ratio, rng(), 32, draws)
    assert len(stream.indices) == draws * DOMAINS * N
    assert np.array_equal(stream.domains, stream.indices // N)
    assert list(stream.cuts[stream.resets]) == [draws * N, 2 * draws * N]
    for start, stop in itertools.pairwise(stream.cuts):
        assert len(set(stream.domains[start:stop])) == 1
    turns = LABELS[stream.indices].reshape(DOMAINS, K, draws * PER_CLASS)
    shares = np.stack([np.bincount(turn, minlength=K) for domain in turns for turn in domain]) / (draws * PER_CLASS)
    prevailing, rest = shares.max(axis=1), np.sort(shares, axis=1)[:, :-1]
    if ratio > 1:
        # By the release: ratio / (ratio + K - 1) for the class of the turn, as much as is left for each other one.
        assert np.allclose(prevailing, ratio / (ratio + K - 1), atol=0.05)
        assert np.allclose(rest, 1 / (ratio + K - 1), atol=0.05)
        assert all(set(domain.argmax(axis=1)) == set(range(K)) for domain in shares.reshape(DOMAINS, K, K))
        assert len({tuple(domain.argmax(axis=1)) for domain in shares.reshape(DOMAINS, K, K)}) > 1
    else:
        assert np.allclose(shares, 1 / K, atol=0.06)
    # Images of a class are drawn alike, with replacement.
    counts = np.bincount(stream.indices, minlength=DOMAINS * N)
    assert abs(counts.mean() - draws) < 1e-9
    assert 0.5 * draws < counts.var() < 2.0 * draws


def test_a_class_that_is_rarer_than_the_others_has_no_ratio() -> None:
    with pytest.raises(ValueError, match="ratio must be 1 or more"):
        imbalanced(PLAIN, LABELS, 0.5, rng(), 32)


def test_what_comes_after_is_part_of_the_identity_alone() -> None:
    plain = continual(PLAIN, rng(), 32)
    longer = then(plain, np.arange(50))
    assert np.array_equal(longer.indices, plain.indices)
    assert list(longer.after_cuts) == [0, 32, 50]
    assert longer.sha256 != plain.sha256
