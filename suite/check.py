"""What must hold for every method and task, proven by real runs: the report of `selfbench check`.

- the parsed registration equals the imported class;
- equal specs give equal results;
- a run that is killed and resumed gives the results of an uninterrupted one;
- permuting the hidden labels moves no prediction;
- the used budget stays within its limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import registry
from .engine.executor import Ended, Executor
from .engine.local import LocalExecutor
from .engine.preparation import prepare, warm_modules
from .engine.runner import run
from .errors import SelfbenchError, UsageError
from .job import Job
from .record import Record
from .registry import Entry
from .spec import RunSpec
from .store import Store
from .suites import expand, misfit

PERMUTATION = 1
"""Seed of the permutation of hidden labels."""


class Finding(NamedTuple):
    """One proven or disproven statement; `detail` says on which task, or why not."""

    ok: bool
    what: str
    detail: str


def partners(entry: Entry) -> list[str]:
    """The tasks a method fits, or the methods that fit a task."""
    if entry.kind == "method":
        return [task.name for task in registry.entries("task").values() if not misfit(entry, task)]
    return [method.name for method in registry.entries("method").values() if not misfit(method, entry)]


def check(
    entry: Entry,
    partner: str,
    folder: Path,
    *,
    seed: int = 0,
    budget: dict[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Finding]:
    """Check `entry` together with `partner` (a task for a method, a method for a task); uses `folder` for its runs.

    `params` are hyper-parameters of the method that differ from its usual ones.
    """
    task, method = (partner, entry.name) if entry.kind == "method" else (entry.name, partner)
    where = f"{method} on {task}"
    yield _registration(entry)
    specs = expand(tasks=[task], methods=[{"name": method, "params": params or {}}], seeds=[seed], budget=budget)
    with LocalExecutor(1, warm=warm_modules(specs)) as executor:
        prepare(specs, executor, Store(folder / "first"), tell)
        tell("running")
        first = _one(specs, folder / "first", executor)
        yield Finding(first.status == "ok", "runs", f"{where}: {first.status} {first.reason}".strip())
        if first.status != "ok":
            return
        used = {"passes": first.cost.passes, "tokens": float(first.cost.tokens), "seconds": first.cost.seconds}
        limit = first.spec.budget
        yield Finding(
            limit.currency == "seconds" or used[limit.currency] <= limit.limit,
            "stays within its budget",
            f"{where}: {used[limit.currency]:g} of {limit.limit:g} {limit.currency}",
        )
        tell("running again")
        second = _one(specs, folder / "second", executor)
        yield Finding(first.results() == second.results(), "equal seeds give equal results", where)
        tell("running with permuted hidden labels")
        permuted = _one(specs, folder / "permuted", executor, permute=PERMUTATION)
        yield Finding(
            permuted.predictions_sha256 == first.predictions_sha256, "hidden labels do not move predictions", where
        )
        tell("running, killed, and resumed")
        killer = KillOnce(executor, Store(folder / "resumed"))
        resumed = _one(specs, folder / "resumed", killer, checkpoint_seconds=0.0)
        told = f"{where}: killed at a checkpoint" if killer.killed else f"{where}: ended before it could be killed"
        yield Finding(first.results() == resumed.results(), "resumed equals uninterrupted", told)


def _registration(entry: Entry) -> Finding:
    cls = entry.load()
    problems = []
    seen = getattr(cls, "__selfbench__", {})
    for name, value in entry.options.items():
        if name in seen and seen[name] != value:
            problems.append(f"{name}: parsed {value!r}, imported {seen[name]!r}")
    if entry.kind == "method":
        if not dataclasses.is_dataclass(cls):
            problems.append("the class is no dataclass: put @dataclass under @register_method")
        else:
            imported = {field.name: field.default for field in dataclasses.fields(cls)}
            parsed = {item.name: item.default for item in entry.hypers}
            if imported != parsed:
                problems.append(f"hyper-parameters: parsed {parsed}, imported {imported}")
        for preset, values in entry.presets.items():
            try:
                entry.params(values)
            except UsageError as error:
                problems.append(f"preset {preset}: {error}")
    return Finding(not problems, "is registered as it is written", "; ".join(problems) or str(entry.file))


class _Silent:
    """Hears nothing; a check tells its own progress."""

    def started(self, spec: RunSpec, under_way: int) -> None: ...
    def tick(self, shares: dict[str, float]) -> None: ...
    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None: ...


def _one(
    specs: list[RunSpec],
    folder: Path,
    executor: Executor,
    *,
    permute: int | None = None,
    checkpoint_seconds: float = 1e9,
) -> Record:
    summary = run(specs, Store(folder), executor, _Silent(), permute=permute, checkpoint_seconds=checkpoint_seconds)
    if summary.lost:
        raise SelfbenchError(f"{summary.lost[0][0].label}: {summary.lost[0][1]}")
    return summary.finished[0]


class KillOnce:
    """An executor that kills the first job as soon as it has left a checkpoint; the runner then starts it again."""

    def __init__(self, inner: Executor, store: Store) -> None:
        self.slots = inner.slots
        self.killed = False
        self._inner, self._store = inner, store
        self._watched: tuple[int, Path] | None = None

    def submit(self, job: Job) -> int:
        handle = self._inner.submit(job)
        if not self.killed:
            self._watched = (handle, self._store.work(job.run_spec) / "checkpoint.pt")
        return handle

    def poll(self, timeout: float) -> list[Ended]:
        ended = self._inner.poll(min(timeout, 0.01))
        if self._watched and not self.killed and self._watched[1].exists():
            self.killed = True
            self._inner.cancel(self._watched[0])
        return ended

    def cancel(self, handle: int) -> None:
        self._inner.cancel(handle)

    def close(self) -> None:
        self._inner.close()
