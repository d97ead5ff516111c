"""Runs arranged for scoring: one field per task and condition, one row per method and setting, one outcome per seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..generation import NATIVE, TITLES
from ..index import Summary
from ..metrics import Metric, metric_of
from ..spec import Budget, RunSpec, canonical
from .catalogue import Catalogue
from .intervals import Array

OK = "ok"
MISSING = "missing"
FAILURES = ("failed", "timeout", "oom")


class SuiteLike(Protocol):
    """What the board reads of a suite: it only selects runs."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def specs(self) -> Sequence[RunSpec]: ...


class Condition(NamedTuple):
    """What must be equal for two runs to stand in one column. `budget` is canonical JSON."""

    task: str
    version: str
    primary: str
    budget: str
    selection: str
    device: str
    precision: str
    threads: int
    generation: str = NATIVE

    @property
    def text(self) -> str:
        """The condition in words, without the task's name."""
        budget = budget_text(json.loads(self.budget))
        return f"version {self.version} · {budget} · selection: {self.selection} · {self.machine}"

    @property
    def machine(self) -> str:
        """What the runs computed on, in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        made_by = [f"samples of {TITLES[self.generation]}"] if self.generation in TITLES else []
        return ", ".join([self.device, self.precision, threads, *made_by])


class Outcome(NamedTuple):
    """What came of one seed: `value` is the primary metric of a finished run, None of any other."""

    seed: int
    status: str
    value: float | None
    run: Summary


@dataclass(frozen=True)
class Row:
    """One method with one setting, over its seeds in ascending order."""

    label: str
    method: str
    outcomes: tuple[Outcome, ...]

    @cached_property
    def values(self) -> Array:
        """The scores of the finished runs."""
        return np.array([item.value for item in self.outcomes if item.value is not None], dtype=float)

    def count(self, status: str) -> int:
        return sum(item.status == status for item in self.outcomes)

    @property
    def failures(self) -> dict[str, int]:
        return {status: self.count(status) for status in FAILURES if self.count(status)}


@dataclass(frozen=True)
class Field:
    """All rows that may be compared with each other: one task under one condition."""

    condition: Condition
    rows: tuple[Row, ...]

    @property
    def task(self) -> str:
        return self.condition.task

    @property
    def metric(self) -> Metric:
        return metric_of(self.condition.primary)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({item.seed for row in self.rows for item in row.outcomes}))

    @property
    def items(self) -> int:
        """Evaluated test examples of a run; the fewest, should runs differ."""
        return min((o.run.n for row in self.rows for o in row.outcomes if o.value is not None and o.run.n), default=0)

    @cached_property
    def data(self) -> int:
        """How many digests of data and source weights the finished runs have; more than one is worth a warning."""
        return len({o.run.bundle for row in self.rows for o in row.outcomes if o.value is not None and o.run.bundle})

    @property
    def title(self) -> str:
        return f"{self.task} ({self.condition.text})"


def budget_text(budget: Mapping[str, Any]) -> str:
    """A budget in words; fields that a task leaves out have the defaults of `Budget`."""
    full = Budget.model_validate(dict(budget))
    return f"{full.limit:,.0f} {full.currency}, at most {full.wall_seconds:,.0f} s and {full.memory_mb:,} MiB"


def fields_of(runs: Iterable[Summary], catalogue: Catalogue) -> tuple[Field, ...]:
    """Arrange runs into fields, ordered by condition; rows by label, outcomes by seed."""
    grouped: dict[Condition, dict[tuple[str, str, str], list[Outcome]]] = {}
    for run in runs:
        condition = Condition(
            run.task,
            run.task_version,
            run.primary,
            run.budget,
            run.selection,
            run.device,
            run.precision,
            run.threads,
            run.generation,
        )
        rows = grouped.setdefault(condition, {})
        rows.setdefault((run.method, run.method_version, run.params), []).append(_outcome(run))
    return tuple(
        Field(
            condition,
            tuple(
                sorted(
                    (
                        Row(catalogue.label(*key), key[0], tuple(sorted(outcomes, key=lambda item: item.seed)))
                        for key, outcomes in rows.items()
                    ),
                    key=lambda row: row.label,
                )
            ),
        )
        for condition, rows in sorted(grouped.items())
    )


def runs_of_suite(suite: SuiteLike, runs: Iterable[Summary], catalogue: Catalogue) -> list[Summary]:
    """The runs that the suite selects, in its order; those without a record have the status `missing`."""
    known = {run.run_id: run for run in runs}
    primaries = {(run.task, run.task_version): run.primary for run in known.values()}
    chosen = []
    for spec in suite.specs:
        run_id = spec.run_id
        primary = primaries.get((spec.task.name, spec.task.version))
        if primary is None:
            entry = catalogue.tasks.get(spec.task.name)
            primary = str(entry.options.get("metric", "")) if entry else ""
        chosen.append(known.get(run_id) or _missing(spec, run_id, primary))
    return chosen


def _outcome(run: Summary) -> Outcome:
    if run.status == OK and run.value is None:
        # A finished run without its primary metric says nothing that could be ranked.
        return Outcome(run.seed, "failed", None, run)
    return Outcome(run.seed, run.status, run.value if run.status == OK else None, run)


def _missing(spec: RunSpec, run_id: str, primary: str) -> Summary:
    return Summary(
        run_id=run_id,
        task=spec.task.name,
        task_version=spec.task.version,
        method=spec.method.name,
        method_version=spec.method.version,
        params=canonical(spec.method.params).decode(),
        seed=spec.seed,
        budget=canonical(spec.budget.model_dump()).decode(),
        selection=spec.selection,
        device=spec.device,
        precision=spec.precision,
        threads=spec.threads,
        status=MISSING,
        primary=primary,
        value=None,
        n=0,
        budget_used_up=0,
        passes=0,
        tokens=0,
        seconds=0,
        gpu_seconds=0,
        memory_mb=0,
        gpu_memory_mb=0,
        generation=spec.generation,
    )
