"""Which methods are separated from which, and what rank that leaves each; pure functions on arrays.

`badness` is (K, S): K methods, S seeds, lower is better, NaN where a method has no result for a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .intervals import Array, bootstrap_test, resamples, t_test
from .rules import CONFIDENCE, MIN_SEEDS

_BLOCK = 4_000_000
"""Numbers held at once while differences of pairs are formed."""


class Rank(NamedTuple):
    """A rank interval: the best and the worst place that the comparisons leave open."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


class Comparison(NamedTuple):
    """All pairs (K, K) at once.

    `gap[i, j]` is the mean of i minus j over the `common[i, j]` seeds that both have (NaN for none), `p[i, j]` its
    p-value (1 below three common seeds), `separated[i, j]` whether i and j are told apart.
    """

    gap: Array
    common: np.ndarray[Any, np.dtype[np.int64]]
    p: Array
    separated: np.ndarray[Any, np.dtype[np.bool_]]

    def ranks(self) -> list[Rank]:
        """[1 + methods separated and better, K - methods separated and worse] of each."""
        size = len(self.gap)
        with np.errstate(invalid="ignore"):
            better = self.separated & (self.gap > 0)
            worse = self.separated & (self.gap < 0)
        return [Rank(1 + int(b), size - int(w)) for b, w in zip(better.sum(axis=1), worse.sum(axis=1), strict=True)]


def compare(badness: Array, smallest_gap: float = 0.0) -> Comparison:
    """Compare all pairs over their common seeds.

    A pair is separated when it has three seeds in common, Holm's (1979) step-down procedure over all compared pairs
    rejects equality at 5 %, and the gap of the means is at least `smallest_gap`.
    """
    size = len(badness)
    gap = np.full((size, size), np.nan)
    p = np.ones((size, size))
    present = ~np.isnan(badness)
    common = present.astype(np.int64) @ present.T.astype(np.int64)
    blocks = list(_blocks(badness, present))
    for block in blocks:
        _t_tests(block, badness, gap, p)
    upper = np.triu(np.ones((size, size), dtype=bool), 1) & (common >= MIN_SEEDS)
    compared = int(upper.sum())
    # The bootstrap can only raise a p-value, so pairs that fail without it need not be resampled.
    candidates = np.zeros((size, size), dtype=bool)
    candidates[upper] = holm(p[upper], compared)
    for block in blocks:
        _bootstrap_tests(block, badness, candidates, gap, p)
    separated = np.zeros((size, size), dtype=bool)
    separated[upper] = holm(p[upper], compared) & (np.abs(gap[upper]) >= smallest_gap)
    p = np.where(upper, p, np.where(upper.T, p.T, 1.0))
    return Comparison(gap, common, p, separated | separated.T)


def holm(p: Array, compared: int, level: float = 1 - CONFIDENCE) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the hypotheses with p-values `p` (m,) are rejected, with the familywise error at most `level`."""
    order = np.argsort(p, kind="stable")
    passed = p[order] <= level / (compared - np.arange(len(p)))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order] = np.logical_and.accumulate(passed)
    return rejected


def tie_letters(separated: np.ndarray[Any, np.dtype[np.bool_]], order: Sequence[int]) -> list[str]:
    """The compact letter display: two methods share a letter exactly when they are not separated.

    Insert and absorb (Piepho, 2004): a group that holds a separated pair splits into one without either; groups inside
    others vanish. `order` lists the methods from best to worst; letters follow it. A method that is tied with none
    has no letter.
    """
    place = {method: at for at, method in enumerate(order)}
    groups = [frozenset(order)]
    for i in order:
        for j in order:
            if place[i] < place[j] and separated[i, j]:
                split = [part for group in groups for part in _without(group, i, j)]
                groups = [group for group in set(split) if not any(group < other for other in split)]
    shown = sorted((group for group in groups if len(group) > 1), key=lambda group: sorted(place[m] for m in group))
    letters = [""] * len(separated)
    for at, group in enumerate(shown):
        for method in group:
            letters[method] += _letter(at)
    return letters


class _Block(NamedTuple):
    """Pairs of the rows `left` and `right`, all of which share exactly the seeds `seeds`."""

    left: np.ndarray[Any, np.dtype[np.int64]]
    right: np.ndarray[Any, np.dtype[np.int64]]
    seeds: np.ndarray[Any, np.dtype[np.bool_]]


def _blocks(badness: Array, present: np.ndarray[Any, np.dtype[np.bool_]]) -> Iterator[_Block]:
    """All pairs, by the seeds they have in common, so that each block is one array operation."""
    patterns, inverse = np.unique(present, axis=0, return_inverse=True)
    members = [np.flatnonzero(inverse.ravel() == at) for at in range(len(patterns))]
    for left, one in zip(members, patterns, strict=True):
        for right, other in zip(members, patterns, strict=True):
            seeds = one & other
            if not seeds.any():
                continue
            rows = max(1, _BLOCK // (len(right) * int(seeds.sum())))
            for start in range(0, len(left), rows):
                yield _Block(left[start : start + rows], right, seeds)


def _t_tests(block: _Block, badness: Array, gap: Array, p: Array) -> None:
    here = np.ix_(block.left, block.right)
    difference = badness[block.left][:, None, block.seeds] - badness[block.right][None, :, block.seeds]
    n = difference.shape[-1]
    gap[here] = difference.mean(axis=-1)
    if n >= MIN_SEEDS:
        p[here] = t_test(gap[here], difference.std(axis=-1, ddof=1), n)


def _bootstrap_tests(
    block: _Block, badness: Array, candidates: np.ndarray[Any, np.dtype[np.bool_]], gap: Array, p: Array
) -> None:
    n = int(block.seeds.sum())
    if n < MIN_SEEDS:
        return
    shares, weights = resamples(n)
    rows, columns = np.nonzero(candidates[np.ix_(block.left, block.right)])
    step = max(1, _BLOCK // len(weights))
    for start in range(0, len(rows), step):
        i, j = block.left[rows[start : start + step]], block.right[columns[start : start + step]]
        difference = badness[i][:, block.seeds] - badness[j][:, block.seeds]
        p[i, j] = np.maximum(p[i, j], bootstrap_test(gap[i, j], shares @ difference.T, weights, n))


def _without(group: frozenset[int], i: int, j: int) -> list[frozenset[int]]:
    return [group - {i}, group - {j}] if i in group and j in group else [group]


def _letter(at: int) -> str:
    """a ... z, then a1 ... z1 and so on."""
    return chr(ord("a") + at % 26) + (str(at // 26) if at >= 26 else "")
