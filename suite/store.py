"""The store: one file per record under a results folder.

results/<task>/<method>/<run id>.json      the truth
results/.work/                             claims, logs and checkpoints of runs under way
results/.predictions/<run id>.npz          predicted classes, of tasks that want them kept for export
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import record as records
from .errors import UsageError
from .files import write_atomic
from .index import Index
from .record import Record
from .spec import RunSpec


@dataclass(frozen=True)
class Store:
    """Reads and writes the records of one results folder."""

    root: Path

    def path(self, spec: RunSpec) -> Path:
        return self.root / spec.task.name / spec.method.name / f"{spec.run_id}.json"

    def work(self, spec: RunSpec) -> Path:
        """The folder of a run under way: claim, log, checkpoint."""
        return self.root / ".work" / spec.run_id

    def predictions(self, spec: RunSpec) -> Path:
        """Where the predicted classes of a run are kept, by evaluated set, if its task wants that."""
        return self.root / ".predictions" / f"{spec.run_id}.npz"

    def read(self, spec: RunSpec) -> Record | None:
        """The verified record of `spec`, None when there is none; raises `RecordError` on a broken file."""
        path = self.path(spec)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        return records.decode(raw, str(path))

    def write(self, record: Record) -> Path:
        """Write `record` durably; an existing file of the same run is replaced in one step."""
        path, scratch = self.path(record.spec), self.work(record.spec)
        scratch.mkdir(parents=True, exist_ok=True)
        write_atomic(path, records.encode(record), scratch)
        return path

    def check_writable(self) -> None:
        """Raise `UsageError` before any work is done when no record could be written."""
        probe = self.root / ".work" / f".probe-{os.getpid()}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(probe, b"probe\n" * 1024)
            probe.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
            raise UsageError(
                f"Cannot write to the results folder '{self.root}': {error.strerror}. "
                "Make room or permission there, or name another one with --results FOLDER."
            ) from None

    def index(self, progress: Callable[[int, int], None] | None = None) -> Index:
        """The up-to-date index of this folder."""
        return Index(self.root, progress)
