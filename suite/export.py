"""Files for public leaderboards from the runs of a task.

A record holds the digest of a run's predictions, not the predictions: they would be many times as large as all else,
and a board needs none. A task with a public leaderboard therefore has the predicted classes of the point that counts
kept beside the records, in `.predictions/` of the results folder, on the machine that ran it; they are not committed.
Classes cannot be checked against a digest of logits. What is checked before anything is written: the record is there
and whole, it was computed on the data that is here, and the kept classes reach the primary metric of the record to
1e-6.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Array, BundleFolder
from .command import repeat_command
from .errors import UsageError
from .files import write_atomic
from .prepare.bundles import build
from .protocols.adaptation import EVALUATED, AdaptationTask
from .record import Record
from .registry import Entry
from .spec import RunSpec, canonical
from .store import Store

TOLERANCE = 1e-6


def replicates(entry: Entry, method: str, store: Store, run: str | None = None) -> list[RunSpec]:
    """The runs of `method` on the task that one submission needs: equal but for their seeds, which begin at 0.

    `run` is the id of any of them, for when there are runs with several settings. Raises `UsageError` that says which
    runs there are, or which command makes the missing ones.
    """
    task = _task(entry)
    with store.index() as index:
        records = [record for record in index.records(entry.name, method) if record.status == "ok"]
    settings: dict[bytes, Record] = {}
    for record in records:
        if run is None or record.run_id.startswith(run):
            settings.setdefault(canonical(record.spec.model_dump(mode="json", exclude={"seed"})), record)
    if not settings:
        what = f"run '{run}'" if run else "run"
        raise UsageError(f"{store.root} has no finished {what} of {method} on {entry.name}.")
    if len(settings) > 1:
        listed = "\n".join(f"  {record.run_id}: {repeat_command(record.spec)}" for record in settings.values())
        raise UsageError(f"There are runs with {len(settings)} settings; choose one of them with --run:\n{listed}")
    [first] = settings.values()
    specs = [first.spec.model_copy(update={"seed": seed}) for seed in range(task.replicates)]
    have = {record.run_id for record in records}
    absent = [str(spec.seed) for spec in specs if spec.run_id not in have]
    if absent:
        raise UsageError(
            f"A submission needs the seeds 0 to {task.replicates - 1}; missing are {', '.join(absent)}: type "
            f"`{repeat_command(first.spec, ','.join(absent))}`."
        )
    return specs


def write_submission(entry: Entry, specs: Iterable[RunSpec], store: Store, out: Path) -> list[Path]:
    """Write the files of the task's leaderboard below `out`; returns them. One run in doubt, and nothing is written."""
    task, bundle = _task(entry), build(entry)
    content: dict[str, str | bytes] = {}
    for spec in specs:
        content |= task.submission(spec.seed, _checked(task, bundle, store, spec))
    for name, text in content.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out / name, text.encode() if isinstance(text, str) else text)
    return [out / name for name in content]


def _task(entry: Entry) -> AdaptationTask:
    task: Any = entry.load()()
    if not getattr(task, "replicates", 0):
        raise UsageError(f"Task '{entry.name}' has no public leaderboard whose files are known here.")
    return task  # type: ignore[no-any-return]


def _checked(task: AdaptationTask, bundle: BundleFolder, store: Store, spec: RunSpec) -> dict[str, Array]:
    """The kept classes of a run by evaluated set."""
    record, path = store.read(spec), store.predictions(spec)
    again = f"Run it again: `{repeat_command(spec)}` after removing {store.path(spec)}."
    if record is None:
        raise UsageError(f"{store.path(spec)} is missing.")
    if record.provenance.bundle_sha256 != bundle.sha256:
        raise UsageError(f"Run {spec.run_id} was computed on other data than is here. {again}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            predicted = {name: kept[name] for name in EVALUATED if name in kept}
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: predictions stay on the machine of the run. {again}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}. {again}") from None
    split, private = task.split(bundle, spec.seed), bundle.private()
    for name in EVALUATED:
        expected = len(getattr(split, name))
        if expected != len(predicted.get(name, ())):
            raise UsageError(f"{path} has {len(predicted.get(name, ()))} of {expected} predictions of {name}. {again}")
    outputs = task.unpredicted(predicted["test"])
    reached = task.score(outputs, task.labels(private, split.test)).metrics[record.primary]
    if abs(reached - record.metrics[record.primary]) > TOLERANCE:
        raise UsageError(
            f"{path} is not of run {spec.run_id}: its {record.primary} is {reached:.6f}, the record says "
            f"{record.metrics[record.primary]:.6f}. {again}"
        )
    return predicted
