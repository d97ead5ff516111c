"""The index of a results folder, which can be thrown away.

It is a SQLite file in the user's cache folder. It is keyed by path, size and modification time, is brought up to date
at every opening, and is rebuilt from nothing when it is missing, broken or of another version.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import record as records
from .errors import RecordError, UsageError
from .files import locked
from .places import cache_folder
from .record import Record
from .spec import canonical

INDEX_VERSION = 5
_PARALLEL_FROM = 2000
_CHUNK = 512
_SCHEMA = """
create table files (path text primary key, size integer, mtime integer, error text);
create table runs (
    path text primary key, run_id text, task text, task_version text, method text, method_version text, params text,
    seed integer, budget text, selection text, device text, precision text, threads integer, status text,
    "primary" text, value real, n integer, budget_used_up integer, passes real, tokens integer, seconds real,
    gpu_seconds real, memory_mb real, gpu_memory_mb real,
    bundle text, data_facts text, generation text
);
create table bodies (path text primary key, run_id text, body blob);
create index by_task on runs (task, method, seed, run_id);
create index by_id on bodies (run_id);
"""
"""Bodies stand apart, so that a query over all runs reads a few hundred bytes a run."""


class Stat(NamedTuple):
    path: str
    size: int
    mtime: int


class Summary(NamedTuple):
    """What the board needs of one record: one line of the index, in the order of its columns.

    `params` and `budget` are canonical JSON, `value` is the primary metric, memory is in MiB, `bundle` the digest of
    data and source weights, empty where the run never began, `data_facts` the facts of the data as canonical JSON,
    empty without any.
    """

    run_id: str
    task: str
    task_version: str
    method: str
    method_version: str
    params: str
    seed: int
    budget: str
    selection: str
    device: str
    precision: str
    threads: int
    status: str
    primary: str
    value: float | None
    n: int
    budget_used_up: int
    passes: float
    tokens: int
    seconds: float
    gpu_seconds: float
    memory_mb: float
    gpu_memory_mb: float
    bundle: str = ""
    data_facts: str = ""
    generation: str = "native"

    @property
    def started(self) -> bool:
        """Whether the run began; there is no record of others, or one of a preparation that failed."""
        return bool(self.bundle)


_COLUMNS = ", ".join(f'"{name}"' for name in Summary._fields)


class Broken(NamedTuple):
    """A file under the results folder that is no valid record, and why."""

    path: str
    error: str


class Index:
    """All valid records of a store, queried without touching the record files again."""

    def __init__(self, root: Path, progress: Callable[[int, int], None] | None = None) -> None:
        if not root.is_dir():
            raise UsageError(f"There is no results folder '{root}'. `selfbench run --suite quick` makes one.")
        self.root = root
        key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self.file = cache_folder() / "index" / f"{key}.sqlite"
        try:
            # Whoever opens the index may write it anew, so that only one process at a time is here.
            with locked(self.file.with_suffix(".lock")):
                self._bring_up_to_date(progress)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"Cannot write the index of '{root}' to {self.file}: {error}. "
                "Make room or permission there, or name another folder with SELFBENCH_CACHE."
            ) from None

    def _bring_up_to_date(self, progress: Callable[[int, int], None] | None) -> None:
        self._database = self._open()
        try:
            self._expect_whole()
            self._refresh(progress)
        except sqlite3.DatabaseError:
            self._database.close()
            self.file.unlink(missing_ok=True)
            self._database = self._open()
            self._refresh(progress)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.file, timeout=60)
        try:
            version = database.execute("pragma user_version").fetchone()[0]
        except sqlite3.DatabaseError:
            version = -1
        if version != INDEX_VERSION:
            database.close()
            self.file.unlink(missing_ok=True)
            database = sqlite3.connect(self.file, timeout=60)
            database.execute("pragma page_size=16384")  # a few bodies to a page
            database.executescript(f"begin;{_SCHEMA}pragma user_version={INDEX_VERSION};commit")
        database.execute("pragma synchronous=off")
        return database

    def _expect_whole(self) -> None:
        """Raise `sqlite3.DatabaseError` when the end of the file is missing, which SQLite sees only on reaching it."""
        pages, size = (self._database.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
        if pages * size > self.file.stat().st_size:
            raise sqlite3.DatabaseError("the index is torn")

    def _refresh(self, progress: Callable[[int, int], None] | None) -> None:
        known = {row[0]: (row[1], row[2]) for row in self._database.execute("select path, size, mtime from files")}
        found = {stat.path: stat for stat in _scan(self.root)}
        # In the order of the tables' keys, which halves the time of filling them.
        changed = sorted(stat for stat in found.values() if known.get(stat.path) != (stat.size, stat.mtime))
        gone = [(path,) for path in known.keys() - found.keys()]
        with self._database:
            if gone:
                self._database.executemany("delete from files where path=?", gone)
                self._delete(gone)
            done = 0
            for stats, rows, bodies, broken in _load(str(self.root), changed):
                errors = {item.path: item.error for item in broken}
                self._delete([(stat.path,) for stat in stats if stat.path in known])
                self._database.executemany(
                    "insert or replace into files values (?,?,?,?)", [(*stat, errors.get(stat.path)) for stat in stats]
                )
                marks = ",".join("?" * (1 + len(Summary._fields)))
                self._database.executemany(f"insert or replace into runs values ({marks})", rows)
                self._database.executemany("insert or replace into bodies values (?,?,?)", bodies)
                done += len(stats)
                if progress:
                    progress(done, len(changed))

    def _delete(self, paths: list[tuple[str]]) -> None:
        self._database.executemany("delete from runs where path=?", paths)
        self._database.executemany("delete from bodies where path=?", paths)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def __len__(self) -> int:
        return int(self._database.execute("select count(*) from runs").fetchone()[0])

    def broken(self) -> list[Broken]:
        rows = self._database.execute("select path, error from files where error is not null order by path")
        return [Broken(*row) for row in rows]

    def statuses(self) -> dict[str, str]:
        """run id -> status of every record."""
        return dict(self._database.execute("select run_id, status from runs"))

    def records(self, task: str | None = None, method: str | None = None) -> Iterator[Record]:
        """The records, ordered by task, method, run id; the verified bytes come from the index."""
        where, values = _where(task=task, method=method)
        for (body,) in self._database.execute(
            f"select body from runs join bodies using (path){where} order by task, method, seed, runs.run_id", values
        ):
            yield Record.model_validate_json(body)

    def summaries(self, task: str | None = None, method: str | None = None) -> list[Summary]:
        """One line per record, in the order of `records`, without parsing any record."""
        where, values = _where(task=task, method=method)
        lines = self._database.execute(
            f"select {_COLUMNS} from runs{where} order by task, method, seed, run_id", values
        )
        return list(map(Summary._make, lines))

    def find(self, run_id: str) -> Record | None:
        """The record whose id starts with `run_id`, None when there is none or more than one."""
        rows = self._database.execute("select body from bodies where run_id glob ?", (f"{run_id}*",)).fetchmany(2)
        return Record.model_validate_json(rows[0][0]) if len(rows) == 1 else None


def read_bodies(index: Path, run_ids: Sequence[str]) -> dict[str, bytes]:
    """run id -> JSON of the verified records, from the index file itself, so that worker processes can call it."""
    found: dict[str, bytes] = {}
    with contextlib.closing(sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True, timeout=60)) as database:
        for start in range(0, len(run_ids), _CHUNK):
            chunk = run_ids[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            found.update(database.execute(f"select run_id, body from bodies where run_id in ({marks})", chunk))
    return found


def _where(**conditions: str | None) -> tuple[str, list[str]]:
    chosen = {name: value for name, value in conditions.items() if value is not None}
    if not chosen:
        return "", []
    return " where " + " and ".join(f"{name}=?" for name in chosen), list(chosen.values())


def _scan(root: Path) -> Iterator[Stat]:
    """Every `<task>/<method>/<file>.json` below `root`, without following links."""
    for task in _folders(root):
        for method in _folders(task):
            with os.scandir(method) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        stat = entry.stat(follow_symlinks=False)
                        relative = f"{task.name}/{method.name}/{entry.name}"
                        yield Stat(relative, stat.st_size, stat.st_mtime_ns)


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )


Rows = list[tuple[object, ...]]
Loaded = tuple[list[Stat], Rows, Rows, list[Broken]]


def _load(root: str, stats: Sequence[Stat]) -> Iterator[Loaded]:
    """Read and verify files in chunks, in worker processes when there are many."""
    chunks = [list(stats[start : start + _CHUNK]) for start in range(0, len(stats), _CHUNK)]
    if len(stats) < _PARALLEL_FROM:
        for chunk in chunks:
            yield _load_chunk(root, chunk)
        return
    # Parsing makes many objects and no cycles: without the collector the workers take half the time.
    with ProcessPoolExecutor(os.cpu_count(), initializer=gc.disable) as pool:
        yield from pool.map(_load_chunk, [root] * len(chunks), chunks)


def _load_chunk(root: str, stats: list[Stat]) -> Loaded:
    rows: Rows = []
    bodies: Rows = []
    broken: list[Broken] = []
    for stat in stats:
        path = f"{root}/{stat.path}"
        try:
            # Twice as fast as `Path.read_bytes`, which counts at a hundred thousand files.
            with io.FileIO(path) as file:
                record, content = records.decode_with_json(file.readall(), path)
            spec = record.spec
            if stat.path != f"{spec.task.name}/{spec.method.name}/{record.run_id}.json":
                raise RecordError(f"{path} lies in the wrong place for run {record.run_id} of {spec.label}.")
        except (RecordError, OSError) as error:
            broken.append(Broken(stat.path, str(error)))
            continue
        rows.append((stat.path, *_summary(record)))
        bodies.append((stat.path, record.run_id, content))
    return stats, rows, bodies, broken


def _summary(record: Record) -> Summary:
    spec, cost = record.spec, record.cost
    return Summary(
        run_id=record.run_id,
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
        status=record.status,
        primary=record.primary,
        value=record.metrics.get(record.primary),
        n=record.n,
        budget_used_up=record.budget_used_up,
        passes=cost.passes,
        tokens=cost.tokens,
        seconds=cost.seconds,
        gpu_seconds=cost.gpu_seconds,
        memory_mb=cost.peak_memory_mb,
        gpu_memory_mb=cost.peak_gpu_memory_mb,
        bundle=record.provenance.bundle_sha256,
        data_facts=canonical(record.data_facts).decode() if record.data_facts else "",
        generation=spec.generation,
    )
