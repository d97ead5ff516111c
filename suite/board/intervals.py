"""Bootstrap intervals and tests of a mean over few seeds; pure functions on arrays.

Seeds are few, and a bootstrap of few values is too narrow in two ways (Hesterberg, 2015, "What Teachers Should Know
About the Bootstrap", The American Statistician 69:4):

1. its spread is that of the n-divisor standard deviation, and it uses the normal where Student's t is due. The
   *expanded percentile* interval corrects both by going out to the percentile
   `Phi(-sqrt(n / (n - 1)) * t[1 - alpha / 2, n - 1])` in place of `alpha / 2`;
2. no percentile reaches beyond the data. Three values enclose the mean they were drawn around in only 75 % of cases,
   so the expanded percentile interval of three seeds cannot cover more often than that.

For the second, an interval here is the hull of the expanded percentile interval and the Student t interval, and the
p-value of a test is the larger of the two that these intervals imply. Interval and test agree: the 95 % interval
excludes zero exactly when the p-value is below 5 %.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from .rules import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES

Array = np.ndarray[Any, np.dtype[np.float64]]
_ROUNDING = 1e-12


class Interval(NamedTuple):
    low: float
    high: float


class Resamples(NamedTuple):
    """Distinct bootstrap samples of n values: `shares` (R, n) of each value, `weights` (R,) of each sample."""

    shares: Array
    weights: Array


@functools.lru_cache(maxsize=64)
def resamples(n: int) -> Resamples:
    """All distinct resamples of n values with their probabilities, or `RESAMPLES` random ones when there are more."""
    if math.comb(2 * n - 1, n) <= RESAMPLES:
        # A resample is a multiset: n stars between n - 1 bars.
        bars = np.array(list(itertools.combinations(range(2 * n - 1), n - 1)), dtype=int).reshape(-1, n - 1)
        edges = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), 2 * n - 1)], axis=1)
        counts = np.diff(edges, axis=1) - 1
        factorials = np.array([math.factorial(count) for count in range(n + 1)], dtype=float)
        weights = factorials[n] / factorials[counts].prod(axis=1) / float(n) ** n
    else:
        rng = np.random.default_rng([BOOTSTRAP_SEED, n])
        counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        weights = np.full(RESAMPLES, 1 / RESAMPLES)
    shares = counts / n
    for array in (shares, weights):
        array.setflags(write=False)
    return Resamples(shares, weights)


def mean_interval(values: Array, confidence: float = CONFIDENCE) -> Interval | None:
    """The interval of the mean of `values` (n,), None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    shares, weights = resamples(n)
    level = expanded_level(n, confidence)
    low, high = _quantiles(shares @ values, weights, (level, 1 - level))
    mean, reach = float(values.mean()), _t(n, confidence) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(min(low, mean - reach), max(high, mean + reach))


def expanded_level(n: int, confidence: float = CONFIDENCE) -> float:
    """The lower percentile, as a fraction, to which the expanded percentile interval of n values goes out."""
    return float(ndtr(-math.sqrt(n / (n - 1)) * _t(n, confidence)))


def t_test(means: Array, deviations: Array, n: int) -> Array:
    """Two-sided p-values of means (any shape) of n values with standard deviations (ddof=1) against zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(means) / (deviations / math.sqrt(n))
    t = np.where(means == 0, 0.0, t)
    return 2 * np.asarray(stdtr(n - 1, -t))


def bootstrap_test(means: Array, resampled: Array, weights: Array, n: int) -> Array:
    """Two-sided p-values (m,) that the expanded percentile interval implies.

    `means` (m,) are the observed means of n values, `resampled` (R, m) those of the resamples, `weights` (R,) theirs.
    The share b of resampled means on the other side of zero is that percentile which the interval has to reach;
    solving `b = Phi(-sqrt(n / (n - 1)) t)` for t gives the p-value. A b of zero bounds nothing and returns 0.
    """
    beyond = np.where(means > 0, resampled <= _ROUNDING, resampled >= -_ROUNDING)
    share = np.minimum(weights @ beyond, 1.0)
    t = -np.asarray(ndtri(share)) * math.sqrt((n - 1) / n)
    return np.minimum(2 * np.asarray(stdtr(n - 1, -t)), 1.0)


def mean_test(values: Array) -> float:
    """The p-value of the mean of `values` (n >= 2,) against zero; see the head of this file."""
    n = len(values)
    mean = values.mean(keepdims=True)
    shares, weights = resamples(n)
    boot = bootstrap_test(mean, (shares @ values)[:, None], weights, n)
    return float(max(boot[0], t_test(mean, values.std(ddof=1, keepdims=True), n)[0]))


def _t(n: int, confidence: float) -> float:
    return float(stdtrit(n - 1, 0.5 + confidence / 2))


def _quantiles(values: Array, weights: Array, levels: tuple[float, float]) -> tuple[float, float]:
    """The smallest values whose cumulative weight reaches the levels."""
    order = np.argsort(values, kind="stable")
    reached = np.searchsorted(np.cumsum(weights[order]), np.array(levels) - _ROUNDING)
    low, high = values[order][np.minimum(reached, len(values) - 1)]
    return float(low), float(high)
