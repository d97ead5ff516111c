"""The board of one task: a field scored and ranked. Pure functions; equal records give equal boards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .catalogue import Catalogue
from .intervals import Array, Interval, mean_interval, mean_intervals
from .ranking import Rank, compare, tie_letters
from .rules import DISCORDANT, MDE_FACTOR, MDE_METRICS, MIN_SEEDS, VIEW_CONTROLS
from .table import FAILURES, MISSING, Field, Row

RANKED = "ranked"
FEW_SEEDS = "not enough seeds"
NOT_RUN = "not run yet"
ALONE = "nothing to compare with"
UPPER_BOUND = "upper bound"
UNRANKED = "not ranked"
UNGATED = "own judge, no gate"
_MOST_LETTERED = 60


@dataclass(frozen=True)
class Score:
    """One row of a task's board.

    `mean` and `sd` (ddof=1) are over the finished seeds, in the metric's unit. `standing` says why there is a rank or
    none; `rank_mean` is the mean that the order follows, failed seeds imputed; `gap` is the mean difference to the
    best method over common seeds, in the metric's unit. `control` is the label of the control that trains on the same
    view of the labelled examples alone, empty where the field has none, and `control_gap` the difference to it, from
    which the gain of the augmentation has been taken away. `ungated` says that its own judge rewards it, and that
    nobody has asked what that judge is worth.
    """

    row: Row
    kind: str
    needs: tuple[str, ...]
    mean: float | None
    sd: float | None
    interval: Interval | None
    standing: str
    rank: Rank | None = None
    letters: str = ""
    rank_mean: float | None = None
    gap: float | None = None
    gap_interval: Interval | None = None
    control: str = ""
    control_gap: float | None = None
    control_interval: Interval | None = None
    imputed: int = 0
    ungated: bool = False
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.row.label

    @property
    def finished(self) -> int:
        return len(self.row.values)

    @property
    def failed(self) -> int:
        return sum(self.row.failures.values())

    @property
    def missing(self) -> int:
        return self.row.count(MISSING)

    @property
    def expected(self) -> int:
        return len(self.row.outcomes)


@dataclass(frozen=True)
class TaskBoard:
    """The scored field of one task: rows from best to worst, those without any score last.

    `items` counts what the metric is a mean of; `mde` is the minimum detectable effect in the metric's unit, None where
    the metric has none; `compared` counts the ranked methods; `badness` (rows, seeds) holds the scores, signed so that
    lower is better, failed seeds imputed.
    """

    field: Field
    scores: tuple[Score, ...]
    items: int
    mde: float | None
    compared: int
    badness: Array

    @property
    def controlled(self) -> bool:
        """Whether any method stands beside the control of its view."""
        return any(score.control_gap is not None for score in self.scores)

    @cached_property
    def best(self) -> Score | None:
        """The ranked method with the best mean."""
        return next((score for score in self.scores if score.standing == RANKED), None)


def minimum_detectable_effect(items: int, discordant: float = DISCORDANT) -> float:
    """The smallest true gap between two methods that `items` evaluated items can show: 2.8 sqrt(d / n).

    With a share d of items on which exactly one of the two is right, the gap of their scores has a variance of at most
    d / n; 2.8 = 1.96 + 0.84 standard errors are found in four of five cases at the 5 % level. More seeds do not help:
    they are evaluated on the same items.
    """
    return MDE_FACTOR * math.sqrt(discordant / items)


def score_field(field: Field, catalogue: Catalogue, ranked: bool = True) -> TaskBoard:
    """Score all rows of a field, and rank them where `ranked`."""
    sign = 1.0 if field.metric.better == "lower" else -1.0
    items = field.items // catalogue.scored_together(field.task)
    mde = None
    if field.condition.primary in MDE_METRICS and items:
        mde = minimum_detectable_effect(items)
    kinds = [catalogue.kind(row.method) for row in field.rows]
    badness, imputed = _badness(field, sign, kinds)
    filled = (~np.isnan(badness)).sum(axis=1)
    rank_means = [float(np.nanmean(line)) if count else math.nan for line, count in zip(badness, filled, strict=True)]
    order = sorted(range(len(rank_means)), key=lambda i: (math.isnan(rank_means[i]), rank_means[i], i))
    standings = [
        _standing(row, kind, int(count), ranked) for row, kind, count in zip(field.rows, kinds, filled, strict=True)
    ]
    entrants = [i for i in order if standings[i] == RANKED]
    if len(entrants) == 1:
        standings[entrants[0]] = ALONE
        entrants = []
    ranks: dict[int, Rank] = {}
    letters: dict[int, str] = {}
    if entrants:
        comparison = compare(badness[entrants], mde or 0.0)
        ranks = dict(zip(entrants, comparison.ranks(), strict=True))
        if len(entrants) <= _MOST_LETTERED:
            letters = dict(zip(entrants, tie_letters(comparison.separated, range(len(entrants))), strict=True))
    intervals = _intervals(field)
    views = [catalogue.view(row.method, row.outcomes[0].run.params) for row in field.rows]
    best = entrants[0] if entrants else None
    scores = []
    for i in order:
        row, values = field.rows[i], field.rows[i].values
        gap, gap_interval = _gap(badness, i, best, sign)
        control = _control(field, views, i) if kinds[i] == "method" else None
        control_gap, control_interval = _gap(badness, i, control, sign)
        scores.append(
            Score(
                row=row,
                kind=kinds[i],
                needs=catalogue.needs(row.method),
                mean=float(values.mean()) if len(values) else None,
                sd=float(values.std(ddof=1)) if len(values) > 1 else None,
                interval=intervals.get(i),
                standing=standings[i],
                rank=ranks.get(i),
                letters=letters.get(i, ""),
                rank_mean=None if math.isnan(rank_means[i]) else sign * rank_means[i],
                gap=gap,
                gap_interval=gap_interval,
                control="" if control is None else field.rows[control].label,
                control_gap=control_gap,
                control_interval=control_interval,
                imputed=imputed[i],
                ungated=catalogue.ungated(row.method, field.task),
                cost=_cost(row),
            )
        )
    return TaskBoard(field, tuple(scores), items, mde, len(entrants), badness[order])


def _badness(field: Field, sign: float, kinds: list[str]) -> tuple[Array, list[int]]:
    """Scores (rows, seeds) with lower better, and how many of each row were imputed.

    A failed, timed-out or out-of-memory run counts as the worst score that any method got on that seed, so that no
    method gains by failing where it would have done badly. A missing run stays missing, and so does one that never
    began because its task could not be prepared.
    """
    columns = {seed: at for at, seed in enumerate(field.seeds)}
    badness = np.full((len(field.rows), len(columns)), np.nan)
    failed = np.zeros(badness.shape, dtype=bool)
    for i, row in enumerate(field.rows):
        for item in row.outcomes:
            if item.value is not None:
                badness[i, columns[item.seed]] = sign * item.value
            failed[i, columns[item.seed]] = item.status in FAILURES and item.run.started
    rivals = np.array([kind != "upper-bound" for kind in kinds], dtype=bool)
    worst = np.max(np.where(np.isnan(badness[rivals]), -np.inf, badness[rivals]), axis=0, initial=-np.inf)
    fillable = failed & np.isfinite(worst)
    return np.where(fillable, worst, badness), [int(count) for count in fillable.sum(axis=1)]


def _standing(row: Row, kind: str, seeds: int, ranked: bool) -> str:
    if row.count(MISSING) == len(row.outcomes):
        return NOT_RUN
    if kind == "upper-bound":
        return UPPER_BOUND
    if not ranked:
        return UNRANKED
    return RANKED if seeds >= MIN_SEEDS else FEW_SEEDS


def _intervals(field: Field) -> dict[int, Interval]:
    """The intervals of the means of all rows with enough seeds, kept to [0, 1] where the metric is a share."""
    by_seeds: dict[int, list[int]] = {}
    for i, row in enumerate(field.rows):
        if len(row.values) >= MIN_SEEDS:
            by_seeds.setdefault(len(row.values), []).append(i)
    found: dict[int, Interval] = {}
    for rows in by_seeds.values():
        found.update(zip(rows, mean_intervals(np.array([field.rows[i].values for i in rows])), strict=True))
    if field.metric.percent:
        return {i: Interval(max(low, 0.0), min(high, 1.0)) for i, (low, high) in found.items()}
    return found


def _control(field: Field, views: Sequence[str], i: int) -> int | None:
    """The row of the control that trains on the view of row i alone; `views` has the view of every row."""
    for name, augment in VIEW_CONTROLS.get(views[i], ()):
        for j, row in enumerate(field.rows):
            if row.method == name and augment in ("", views[j]):
                return j
    return None


def _gap(badness: Array, i: int, other: int | None, sign: float) -> tuple[float | None, Interval | None]:
    """The mean difference of row i to another one in the metric's unit, and its interval."""
    if other is None or i == other:
        return None, None
    difference = badness[i] - badness[other]
    difference = sign * difference[~np.isnan(difference)]
    if len(difference) < MIN_SEEDS:
        return None, None
    return float(difference.mean()), mean_interval(difference)


def _cost(row: Row) -> dict[str, float]:
    """Mean counted and measured cost over the finished seeds."""
    runs = [item.run for item in row.outcomes if item.value is not None]
    names = ("passes", "tokens", "seconds", "gpu_seconds", "memory_mb", "gpu_memory_mb")
    return {name: math.fsum(getattr(run, name) for run in runs) / len(runs) for name in names} if runs else {}
