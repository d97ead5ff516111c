"""Progress of a campaign: bars on a terminal, a line per run elsewhere. Everything goes to standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..engine.runner import Watcher as EngineWatcher
    from ..record import Record
    from ..spec import RunSpec

    class Watcher(EngineWatcher, Protocol):
        def note(self, text: str) -> None: ...


def describe(record: Record) -> str:
    """`error 24.1 %  1.2 s`, or the status and its reason."""
    from ..metrics import METRICS

    if record.status != "ok":
        return why(record)
    metric = METRICS[record.primary]
    value = record.metrics[record.primary]
    shown = f"{100 * value:.1f} %" if metric.percent else f"{value:.3f}"
    return f"{record.primary} {shown}  {record.cost.seconds:.1f} s"


def why(record: Record) -> str:
    """Status and reason of a run that is not `ok`; why runs could not begin is told once for all of them at the end."""
    return f"{record.status}: {record.reason if record.started else 'did not begin, see below'}"


def unprepared(found: Iterable[tuple[RunSpec, str]]) -> list[str]:
    """For each task and reason of runs that could not begin: the reason, how many they are, and what takes them up."""
    counts = Counter((spec.task.name, reason) for spec, reason in found)
    return [
        f"{reason}\n{'1 run' if runs == 1 else f'{runs} runs'} of {task} did not begin. "
        "When that is put right, the same command, `selfbench run` or `selfbench retry`, takes up what is missing."
        for (task, reason), runs in counts.items()
    ]


_NOTE_SECONDS = 10.0
"""Where there is no terminal, notes of one kind come no faster than this."""


class Lines:
    """One line per finished run."""

    def __init__(self, total: int, done: int, describe: Callable[[Record], str]) -> None:
        self._total, self._done, self._describe = total, done, describe
        self._noted: dict[str, float] = {}

    def note(self, text: str) -> None:
        kind, now = "".join(letter for letter in text if not letter.isdigit()), time.monotonic()
        if now - self._noted.get(kind, -_NOTE_SECONDS) >= _NOTE_SECONDS:
            self._noted[kind] = now
            print(text, file=sys.stderr, flush=True)

    def started(self, spec: RunSpec, under_way: int) -> None:
        """Nothing to say without a terminal."""

    def tick(self, shares: dict[str, float]) -> None:
        """Nothing to say without a terminal."""

    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None:
        self._done += 1
        text = self._describe(record) if record else f"no new record: {note}"
        by = f"  ({note})" if record and note else ""
        print(f"[{self._done}/{self._total}] {spec.label}: {text}{by}", file=sys.stderr, flush=True)


class Bars:
    """A bar over all runs, and one for each run under way."""

    def __init__(self, progress: Any, total: int, done: int, describe: Callable[[Record], str]) -> None:
        self._progress = progress
        self._describe = describe
        self._all = progress.add_task("runs", total=total, completed=done)
        self._tasks: dict[str, Any] = {}
        self._note: Any = None
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        if self._note is None:
            self._note = self._progress.add_task(text, total=None)
        self._progress.update(self._note, description=text)

    def started(self, spec: RunSpec, under_way: int) -> None:
        if self._note is not None:
            self._progress.remove_task(self._note)
            self._note = None
        if spec.run_id not in self._tasks:
            self._tasks[spec.run_id] = self._progress.add_task(spec.label, total=1.0)

    def tick(self, shares: dict[str, float]) -> None:
        for run_id, share in shares.items():
            if run_id in self._tasks:
                self._progress.update(self._tasks[run_id], completed=share)

    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None:
        task = self._tasks.pop(spec.run_id, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.advance(self._all)
        text = self._describe(record) if record else f"no new record: {note}"
        self._progress.console.print(f"{spec.label}: {text}", highlight=False, markup=False)


@contextlib.contextmanager
def make_watcher(total: int, done: int, tell: Callable[[Record], str] | None = None) -> Iterator[Watcher]:
    """The watcher that fits standard error. `tell` says what came of a run [default: `describe`]."""
    if not sys.stderr.isatty():
        yield Lines(total, done, tell or describe)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress, total, done, tell or describe)
