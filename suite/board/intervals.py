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
_BLOCK = 1_000_000
"""Resampled means held at once."""


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
    return mean_intervals(values[None], confidence)[0] if len(values) > 1 else None


def mean_intervals(values: Array, confidence: float = CONFIDENCE) -> list[Interval]:
    """The interval of the mean of every row of `values` (m, n >= 2)."""
    n = values.shape[1]
    shares, weights = resamples(n)
    level = expanded_level(n, confidence)
    reach = _t(n, confidence) * values.std(axis=1, ddof=1) / math.sqrt(n)
    mean = values.mean(axis=1)
    found = []
    step = max(1, _BLOCK // len(weights))
    for start in range(0, len(values), step):
        here = slice(start, start + step)
        low, high = _quantiles(values[here] @ shares.T, weights, (level, 1 - level))
        low, high = np.minimum(low, mean[here] - reach[here]), np.maximum(high, mean[here] + reach[here])
        found += [Interval(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return found


@functools.lru_cache(maxsize=256)
def expanded_level(n: int, confidence: float = CONFIDENCE) -> float:
    """The lower percentile, as a fraction, to which the expanded percentile interval of n values goes out."""
    return float(ndtr(-math.sqrt(n / (n - 1)) * _t(n, confidence)))


def t_test(means: Array, deviations: Array, n: int) -> Array:
    """Two-sided p-values of means (any shape) of n values with standard deviations (ddof=1) against zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(means) / (deviations / math.sqrt(n))
    t = np.where(means == 0, 0.0, t)
    return _two_sided(t, n)


def bootstrap_test(means: Array, resampled: Array, weights: Array, n: int) -> Array:
    """Two-sided p-values (m,) that the expanded percentile interval implies.

    `means` (m,) are the observed means of n values, `resampled` (R, m) those of the resamples, `weights` (R,) theirs.
    The share b of resampled means on the other side of zero is that percentile which the interval has to reach;
    solving `b = Phi(-sqrt(n / (n - 1)) t)` for t gives the p-value. A b of zero bounds nothing and returns 0.
    """
    beyond = np.where(means > 0, resampled <= _ROUNDING, resampled >= -_ROUNDING)
    share = np.minimum(weights @ beyond, 1.0)
    t = -np.asarray(ndtri(share)) * math.sqrt((n - 1) / n)
    return _two_sided(t, n)


def _two_sided(t: Array, n: int) -> Array:
    p: Array = np.minimum(2 * stdtr(n - 1, -t), 1.0)
    return p


@functools.lru_cache(maxsize=256)
def _t(n: int, confidence: float) -> float:
    return float(stdtrit(n - 1, 0.5 + confidence / 2))


def _quantiles(values: Array, weights: Array, levels: tuple[float, float]) -> tuple[Array, Array]:
    """Per row of `values` (m, R), with `weights` (R,): the smallest values whose summed weights reach the levels."""
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1)
    last = values.shape[1] - 1
    low, high = (
        np.take_along_axis(
            values,
            np.take_along_axis(order, np.minimum((reached < level - _ROUNDING).sum(axis=1), last)[:, None], axis=1),
            axis=1,
        )[:, 0]
        for level in levels
    )
    return low, high
