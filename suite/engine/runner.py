"""Runs a list of specs on an executor: skips what stands, retries what the machinery lost, reports what happened."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .. import registry
from ..command import repeat_command
from ..errors import RecordError, SelfbenchError
from ..job import BUSY, IO_ERROR, Job
from ..prepare.bundles import bundle_folder, source_folders
from ..prepare.decoded import decoded_folder
from ..prepare.frozen import frozen_folders
from ..record import Record
from ..spec import RunSpec
from ..store import Store
from .executor import Executor
from .preparation import Preparation

ATTEMPTS = 3
"""How often a run is started when its worker dies; what a method itself does is never retried."""
GRACE_SECONDS = 60.0
"""Beyond its own hard limit a worker gets so long to write the record before it is killed from here."""
_POLL_SECONDS = 0.25


class Watcher(Protocol):
    """Hears of every event of a campaign; draws bars or prints lines."""

    def started(self, spec: RunSpec, under_way: int) -> None: ...
    def tick(self, shares: dict[str, float]) -> None: ...
    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None: ...


@dataclass
class Summary:
    """What a campaign did. `lost` are runs without a record, or with the one of before, with the reason."""

    finished: list[Record] = field(default_factory=list)
    skipped: int = 0
    lost: list[tuple[RunSpec, str]] = field(default_factory=list)

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.finished if record.status != "ok"]

    @property
    def all_well(self) -> bool:
        return not self.failed and not self.lost


@dataclass
class _Turn:
    """One run's turn: how often it was started, and since when."""

    spec: RunSpec
    run_id: str
    attempt: int = 1
    started: float = 0.0
    overdue: bool = False
    not_before: float = 0.0


class DiskError(SelfbenchError):
    """The results folder cannot be written any more."""


def missing(specs: Iterable[RunSpec], store: Store) -> list[RunSpec]:
    """The specs without the valid record of a run that began, in order; records of other kinds will be replaced."""
    return [spec for spec in specs if not _ran(_standing(store, spec))]


def _standing(store: Store, spec: RunSpec) -> Record | None:
    try:
        return store.read(spec)
    except RecordError:
        return None


def _ran(record: Record | None) -> bool:
    return record is not None and record.started


def run(
    specs: Sequence[RunSpec],
    store: Store,
    executor: Executor,
    watcher: Watcher,
    *,
    preparation: Preparation | None = None,
    replace: bool = False,
    checkpoint_seconds: float = 30.0,
    permute: int | None = None,
) -> Summary:
    """Run every spec that has no record (all of them with `replace`); returns when each has one or is lost.

    A run starts when the `preparation` has made what it needs; where that failed, its record says so. Runs that another
    process has claimed are waited for. Raises `DiskError` when records cannot be written.
    """
    summary = Summary()
    # Looked at once: what another process writes from here on is a new record.
    before = {spec.run_id: _standing(store, spec) for spec in specs}
    todo = [spec for spec in specs if replace or not _ran(before[spec.run_id])]
    summary.skipped = len(specs) - len(todo)
    waiting = [_Turn(spec, spec.run_id) for spec in todo]
    under_way: dict[int, _Turn] = {}
    code = code_state()
    try:
        while waiting or under_way:
            now = time.monotonic()
            due = [turn for turn in waiting if turn.not_before <= now]
            free = executor.slots - len(under_way)
            if preparation is not None:
                due = [turn for turn in due if turn.run_id in preparation.settled]
                free -= preparation.slots
            for turn in due[: max(free, 0)]:
                waiting.remove(turn)
                if turn.not_before and not replace and _ran(_standing(store, turn.spec)):
                    _finish(turn, store, summary, watcher, "by another process")
                    continue
                failure = preparation.failures.get(turn.run_id) if preparation else None
                if failure and _ran(before[turn.run_id]):
                    reason = f"not run again, and the record of before stays: {failure.reason}"
                    _lose(turn, reason, summary, watcher)
                    continue
                _clear_broken(store, turn.spec)
                job = Job(
                    spec=turn.spec.model_dump(mode="json"),
                    results=str(store.root.resolve()),
                    command=repeat_command(turn.spec),
                    code=code,
                    attempt=_attempt(before[turn.run_id]) + turn.attempt - 1,
                    replace=replace,
                    permute=permute,
                    checkpoint_seconds=checkpoint_seconds,
                    **(_needs(turn.spec) if failure is None else {"unprepared": asdict(failure)}),
                )
                turn.started = now
                try:
                    under_way[executor.submit(job)] = turn
                except OSError as error:
                    raise _disk_error(store, error.strerror or str(error)) from None
                watcher.started(turn.spec, len(under_way))
            for ended in executor.poll(_POLL_SECONDS):
                if preparation is None or not preparation.took(ended):
                    turn = under_way.pop(ended.handle)
                    _settle(turn, ended.code, store, summary, watcher, waiting, before[turn.run_id])
            if preparation is not None:
                preparation.tick()
            _kill_overdue(under_way, executor)
            watcher.tick({turn.run_id: _share(store, turn.spec) for turn in under_way.values()})
    finally:
        for handle in under_way:
            executor.cancel(handle)
        if preparation is not None:
            preparation.cancel()
    return summary


def _needs(spec: RunSpec) -> dict[str, Any]:
    """Where what the run of `spec` needs lies."""
    task, method = registry.get("task", spec.task.name), registry.get("method", spec.method.name)
    decoded = decoded_folder(task)
    return {
        "bundle": str(bundle_folder(task).path),
        "decoded": str(decoded.path) if decoded else "",
        "frozen": {name: str(folder.path) for name, folder in frozen_folders(spec).items()},
        "source": {part: str(folder.path) for part, folder in source_folders(task, method).items()},
    }


def _settle(
    turn: _Turn,
    code: int,
    store: Store,
    summary: Summary,
    watcher: Watcher,
    waiting: list[_Turn],
    before: Record | None,
) -> None:
    """Decide what the end of a worker means."""
    if code == 0:
        record = _standing(store, turn.spec)
        if record is not None and (before is None or record != before):
            _finish(turn, store, summary, watcher, "")
            return
    if code == BUSY:
        turn.not_before = time.monotonic() + 1.0
        waiting.append(turn)
        return
    if code == IO_ERROR:
        raise _disk_error(store, _last_line(store, turn.spec))
    reason = "took longer than its hard limit and did not stop" if turn.overdue else _exit_reason(code)
    if turn.attempt < ATTEMPTS and not turn.overdue:
        turn.attempt += 1
        waiting.insert(0, turn)
        return
    reason = f"infrastructure: the worker {reason} ({turn.attempt} attempts; see {store.work(turn.spec) / 'log'})"
    _lose(turn, reason, summary, watcher)


def _lose(turn: _Turn, reason: str, summary: Summary, watcher: Watcher) -> None:
    summary.lost.append((turn.spec, reason))
    watcher.finished(turn.spec, None, reason)


def _finish(turn: _Turn, store: Store, summary: Summary, watcher: Watcher, note: str) -> None:
    record = store.read(turn.spec)
    assert record is not None
    summary.finished.append(record)
    watcher.finished(turn.spec, record, note)


def _exit_reason(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"left with exit code {code}"


def _disk_error(store: Store, detail: str) -> DiskError:
    return DiskError(
        f"Cannot write to the results folder '{store.root}': {detail}. All finished runs are kept. "
        "Make room there and run the same command again: it completes exactly what is missing."
    )


def _last_line(store: Store, spec: RunSpec) -> str:
    try:
        lines = (store.work(spec) / "log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "writing failed"


def _kill_overdue(under_way: dict[int, _Turn], executor: Executor) -> None:
    for handle, turn in under_way.items():
        if time.monotonic() - turn.started > turn.spec.budget.wall_seconds + GRACE_SECONDS and not turn.overdue:
            turn.overdue = True
            executor.cancel(handle)


def _share(store: Store, spec: RunSpec) -> float:
    try:
        return float((store.work(spec) / "progress").read_text() or 0)
    except (OSError, ValueError):
        return 0.0


def _clear_broken(store: Store, spec: RunSpec) -> None:
    """Move a broken record out of the way, so that the run can take its place; nothing is deleted."""
    path = store.path(spec)
    if path.exists() and _standing(store, spec) is None:
        target = store.work(spec) / "broken.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _attempt(before: Record | None) -> int:
    return before.provenance.attempt + 1 if before else 1


def code_state() -> dict[str, Any]:
    """Git commit and dirty flag of the checkout this package is imported from; empty outside of one."""
    root = registry.PACKAGE
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
