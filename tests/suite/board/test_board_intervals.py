"""Intervals and tests against numbers worked out by hand, and their error rates by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, t, ttest_1samp

from selfbench.suite.board.intervals import bootstrap_test, expanded_level, mean_interval, resamples, t_test
from selfbench.suite.board.rules import RESAMPLES


def test_two_values_have_three_resamples() -> None:
    shares, weights = resamples(2)
    found = {tuple(row): weight for row, weight in zip(shares.tolist(), weights.tolist(), strict=True)}
    assert found == {(1.0, 0.0): 0.25, (0.5, 0.5): 0.5, (0.0, 1.0): 0.25}


@pytest.mark.parametrize("n", [3, 5, 8])
def test_small_samples_are_enumerated(n: int) -> None:
    shares, weights = resamples(n)
    assert len(shares) == math.comb(2 * n - 1, n) <= RESAMPLES
    assert len({tuple(row) for row in shares.tolist()}) == len(shares)
    assert weights.sum() == pytest.approx(1)
    values = np.random.default_rng(0).standard_normal(n)
    means = shares @ values
    # The bootstrap mean is unbiased, with the variance of the n-divisor standard deviation.
    assert weights @ means == pytest.approx(values.mean())
    assert weights @ means**2 - (weights @ means) ** 2 == pytest.approx(values.var() / n)


def test_larger_samples_are_drawn_the_same_every_time() -> None:
    resamples.cache_clear()
    first = resamples(9).shares.copy()
    resamples.cache_clear()
    assert len(first) == RESAMPLES
    assert np.array_equal(first, resamples(9).shares)


def test_three_seeds_get_the_t_interval() -> None:
    """Mean 2, sd 1, t[0.975, 2] = 4.3027: 2 -+ 4.3027 / sqrt(3); the bootstrap cannot leave [1, 3]."""
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]))  # type: ignore[misc]
    assert low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)


def test_skewed_scores_reach_further_on_the_heavy_side() -> None:
    """Seven zeros and one 8: the bootstrap mean is the number of draws of the 8, binomial(8, 1/8)."""
    values = np.array([0.0] * 7 + [8.0])
    level = expanded_level(8)
    assert binom.cdf(3, 8, 1 / 8) < 1 - level < binom.cdf(4, 8, 1 / 8)
    low, high = mean_interval(values)  # type: ignore[misc]
    assert high == pytest.approx(4.0)
    assert low == pytest.approx(1 - t.ppf(0.975, 7) * math.sqrt(8) / math.sqrt(8))


def test_equal_scores_have_an_interval_of_no_width() -> None:
    assert mean_interval(np.array([0.25, 0.25, 0.25])) == (0.25, 0.25)


def test_one_score_has_no_interval() -> None:
    assert mean_interval(np.array([0.25])) is None


@pytest.mark.parametrize(("n", "draw"), [(3, "normal"), (5, "normal"), (8, "normal"), (8, "uniform")])
def test_intervals_cover_as_they_say(n: int, draw: str) -> None:
    rng = np.random.default_rng(n)
    samples = rng.standard_normal((1500, n)) if draw == "normal" else rng.uniform(-1, 1, (1500, n))
    covered = np.mean([low <= 0 <= high for low, high in map(mean_interval, samples)])  # type: ignore[misc]
    assert 0.935 <= covered <= 0.985


def test_the_range_of_three_seeds_alone_would_cover_three_of_four_times() -> None:
    samples = np.random.default_rng(0).standard_normal((4000, 3))
    covered = np.mean((samples.min(axis=1) <= 0) & (samples.max(axis=1) >= 0))
    assert covered == pytest.approx(0.75, abs=0.02)


def test_t_test_is_the_paired_t_test() -> None:
    values = np.array([0.3, 0.1, 0.4, 0.15])
    ours = t_test(values.mean(keepdims=True), values.std(ddof=1, keepdims=True), 4)[0]
    assert ours == pytest.approx(ttest_1samp(values, 0).pvalue)


def test_t_test_without_spread() -> None:
    assert t_test(np.array([0.0, 0.1]), np.array([0.0, 0.0]), 3).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("n", [3, 4, 6, 12])
def test_interval_and_test_agree(n: int) -> None:
    rng = np.random.default_rng(n)
    shares, weights = resamples(n)
    decisions = set()
    for _ in range(150):
        values = rng.exponential(size=n) - rng.uniform(0, 1)
        mean = values.mean(keepdims=True)
        p = max(
            bootstrap_test(mean, (shares @ values)[:, None], weights, n)[0],
            t_test(mean, values.std(ddof=1, keepdims=True), n)[0],
        )
        low, high = mean_interval(values)  # type: ignore[misc]
        assert (p < 0.05) == (not low <= 0 <= high)
        decisions.add(bool(p < 0.05))
    assert decisions == {True, False}
