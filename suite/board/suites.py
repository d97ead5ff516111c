"""The board of a suite: its tasks' boards, and per protocol a summary over tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..index import Summary
from ..metrics import metric_of
from .catalogue import Catalogue
from .intervals import Array, Interval, expanded_level
from .rules import BOOTSTRAP_SEED, MIN_SEEDS, MIN_TASKS, RESAMPLES
from .scores import UPPER_BOUND, Score, TaskBoard, score_field
from .table import MISSING, OK, SuiteLike, fields_of, runs_of_suite


@dataclass(frozen=True)
class Overall:
    """One method over all tasks of a protocol: means of its task means, failed seeds imputed."""

    label: str
    method: str
    kind: str
    needs: tuple[str, ...]
    mean: float
    worst: float
    worst_task: str
    mean_rank: float | None
    rank_interval: Interval | None
    imputed: int


@dataclass(frozen=True)
class ProtocolBoard:
    """Methods that ran on every task of one protocol and one metric; `partial` names the others and their tasks.

    `machine` says what they ran on, where the suite has runs on several devices, precisions or numbers of threads.
    `note` says why there are no rank intervals, where there are none.
    """

    protocol: str
    metric: str
    tasks: tuple[TaskBoard, ...]
    rows: tuple[Overall, ...]
    partial: tuple[tuple[str, int], ...]
    note: str = ""
    machine: str = ""


@dataclass(frozen=True)
class SuiteBoard:
    """A suite with everything its records say. `counts` maps each status, `missing` included, to its runs."""

    name: str
    title: str
    description: str
    tasks: tuple[TaskBoard, ...]
    protocols: tuple[ProtocolBoard, ...]
    counts: dict[str, int]

    @property
    def planned(self) -> int:
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        return self.counts.get(OK, 0)

    @property
    def missing(self) -> int:
        return self.counts.get(MISSING, 0)

    @property
    def failed(self) -> int:
        return self.planned - self.finished - self.missing

    @property
    def has_records(self) -> bool:
        return self.missing < self.planned


def score_suite(suite: SuiteLike, runs: Iterable[Summary], catalogue: Catalogue) -> SuiteBoard:
    """The board of one suite from all runs known; the suite selects its own."""
    selected = runs_of_suite(suite, runs, catalogue)
    order = {task: at for at, task in enumerate(dict.fromkeys(run.task for run in selected))}
    fields = sorted(fields_of(selected, catalogue), key=lambda item: order[item.task])
    boards = tuple(score_field(field, catalogue) for field in fields)
    statuses = [run.status for run in selected]
    return SuiteBoard(
        name=suite.name,
        title=suite.title,
        description=suite.description,
        tasks=boards,
        protocols=tuple(_protocols(boards, catalogue)),
        counts={status: statuses.count(status) for status in sorted(set(statuses))},
    )


def _protocols(boards: Sequence[TaskBoard], catalogue: Catalogue) -> Iterable[ProtocolBoard]:
    """Tasks are averaged only within one protocol, one metric, and what they ran on."""
    grouped: dict[tuple[str, str, str], list[TaskBoard]] = {}
    for board in boards:
        if any(score.rank_mean is not None for score in board.scores):
            condition = board.field.condition
            key = (catalogue.protocol(board.field.task), condition.primary, condition.machine)
            grouped.setdefault(key, []).append(board)
    several = len({machine for *_, machine in grouped}) > 1
    for (protocol, metric, machine), members in sorted(grouped.items()):
        yield replace(summarise(protocol, metric, members), machine=machine if several else "")


def summarise(protocol: str, metric: str, boards: Sequence[TaskBoard]) -> ProtocolBoard:
    """Mean score, worst task and mean rank of every method that has a score on all `boards`."""
    scored: dict[str, list[Score]] = {}
    for board in boards:
        for score in board.scores:
            if score.rank_mean is not None:
                scored.setdefault(score.label, []).append(score)
    complete = {label: scores for label, scores in scored.items() if len(scores) == len(boards)}
    partial = tuple(sorted((label, len(scores)) for label, scores in scored.items() if len(scores) < len(boards)))
    rivals = [label for label, scores in sorted(complete.items()) if scores[0].standing != UPPER_BOUND]
    ranks: dict[str, tuple[float, Interval | None]] = {}
    note = ""
    tables = [_common(board, rivals) for board in boards]
    if len(rivals) < 2:
        note = "Nothing to compare with: fewer than two methods ran on every task."
    elif min(table.shape[1] for table in tables) < MIN_SEEDS:
        note = f"Not enough seeds: the methods have fewer than {MIN_SEEDS} seeds in common on some task."
    else:
        ranks = dict(zip(rivals, mean_ranks(tables), strict=True))
        if len(boards) < MIN_TASKS:
            note = f"Not enough tasks: a mean rank over fewer than {MIN_TASKS} tasks has no interval."
    better = metric_of(metric).better
    rows = []
    for label, scores in complete.items():
        values = np.array([score.rank_mean for score in scores], dtype=float)
        worst = int(values.argmax() if better == "lower" else values.argmin())
        mean_rank, interval = ranks.get(label, (None, None))
        rows.append(
            Overall(
                label=label,
                method=scores[0].row.method,
                kind=scores[0].kind,
                needs=scores[0].needs,
                mean=float(values.mean()),
                worst=float(values[worst]),
                worst_task=boards[worst].field.task,
                mean_rank=mean_rank,
                rank_interval=interval,
                imputed=sum(score.imputed for score in scores),
            )
        )
    rows.sort(key=lambda row: (row.mean if better == "lower" else -row.mean, row.label))
    return ProtocolBoard(protocol, metric, tuple(boards), tuple(rows), partial, note)


def mean_ranks(tables: Sequence[Array]) -> list[tuple[float, Interval | None]]:
    """The mean rank of each of K methods over tasks, and its interval by a hierarchical bootstrap.

    `tables` holds one array (K, seeds) per task, lower is better, without gaps. A resample draws tasks with
    replacement, then seeds within every drawn task; all methods share each draw, so that the comparison stays paired.
    Ranks of equal scores are averaged. The interval is the expanded percentile interval for that number of tasks
    (Hesterberg, 2015; see `intervals.py`); below `MIN_TASKS` tasks there is none.
    """
    size, count = tables[0].shape[0], len(tables)
    observed = np.mean([_ranks(table.mean(axis=1)[None])[0] for table in tables], axis=0)
    if count < MIN_TASKS:
        return [(float(rank), None) for rank in observed]
    rng = np.random.default_rng([BOOTSTRAP_SEED, size, count])
    total = np.zeros((RESAMPLES, size))
    for _ in range(count):
        drawn = rng.integers(count, size=RESAMPLES)
        for at, table in enumerate(tables):
            here = np.flatnonzero(drawn == at)
            seeds = table.shape[1]
            shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(here)) / seeds
            total[here] += _ranks(shares @ table.T)
    tail = expanded_level(count)
    low, high = np.quantile(total / count, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return [(float(rank), Interval(float(a), float(b))) for rank, a, b in zip(observed, low, high, strict=True)]


def _ranks(scores: Array) -> Array:
    """Ranks from 1 along the last axis of (R, K), lowest first, ties averaged."""
    ranks = np.empty_like(scores)
    for method in range(scores.shape[1]):
        own = scores[:, method : method + 1]
        ranks[:, method] = 0.5 + (scores < own).sum(axis=1) + 0.5 * (scores == own).sum(axis=1)
    return ranks


def _common(board: TaskBoard, labels: Sequence[str]) -> Array:
    """The badness (labels, seeds) of some rows over the seeds that all of them have."""
    at = {score.label: i for i, score in enumerate(board.scores)}
    table = board.badness[[at[label] for label in labels]]
    return table[:, ~np.isnan(table).any(axis=0)]
