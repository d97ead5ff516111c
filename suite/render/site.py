"""Builds the whole site into a fresh folder beside the old one and swaps the two at the end."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ..board.catalogue import Catalogue
from ..board.export import json_text, runs_csv
from ..board.scores import TaskBoard, score_field
from ..board.suites import score_suite
from ..board.table import MISSING, OK, SuiteLike, fields_of
from ..errors import UsageError
from ..files import locked
from ..index import Index, Summary
from ..places import cache_folder
from .environment import SITE
from .pages import Facts, Page, Pages, method_views, task_views
from .runs import Job, RunPages, jobs_of

MARKER = "site.json"
"""The file by which a folder is known to hold a built site, and may be replaced."""
_PARALLEL_FROM = 3000
_RUNS_PER_CHUNK = 400

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SiteSummary:
    """What was built: pages written, runs shown, the folder, and the fingerprint of the records it shows."""

    out: Path
    pages: int
    runs: int
    fingerprint: str


def build_site(
    index: Index,
    suites: Sequence[SuiteLike],
    out: Path,
    progress: Progress | None = None,
    catalogue: Catalogue | None = None,
) -> SiteSummary:
    """Build the site of all records of `index` into the folder `out`, which is replaced whole or not at all.

    Equal records and suites give equal bytes. `progress` is called with (pages of runs written, all). Raises
    `UsageError` when `out` holds something that is no site, or when another build of it is under way.
    """
    out = out.resolve()
    fresh = out.parent / f".{out.name}.new"
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock(out), wait=False) as mine:
        if not mine:
            raise UsageError(f"Another build of the site '{out}' is under way. Wait for it, or choose another --out.")
        _recover(out)
        _check_replaceable(out)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            summary = _build(index, suites, fresh, progress, catalogue or Catalogue.registered())
            _swap(fresh, out)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return SiteSummary(out, summary.pages, summary.runs, summary.fingerprint)


def _build(
    index: Index, suites: Sequence[SuiteLike], out: Path, progress: Progress | None, catalogue: Catalogue
) -> SiteSummary:
    runs = index.summaries()
    scored = [score_suite(suite, runs, catalogue) for suite in suites]
    suites_of: dict[str, tuple[str, ...]] = {}
    for board in scored:
        for run in _runs_in(board.tasks):
            suites_of[run.run_id] = (*suites_of.get(run.run_id, ()), board.name)
    every = fields_of(runs, catalogue)
    jobs = jobs_of(every, suites_of)
    (out / "runs").mkdir(parents=True)
    writer = RunPages(index.file, out / "runs", catalogue, {board.name: board.title for board in scored})
    with _run_pages(writer, jobs, len(runs), progress):
        # All that the pages of single runs do not need is worked out while these are being written.
        outside = fields_of((run for run in runs if run.run_id not in suites_of), catalogue)
        loose = [score_field(field, catalogue, ranked=False) for field in outside]
        facts = Facts(len(runs), sum(run.status != OK for run in runs), fingerprint(runs))
        tasks, methods = task_views(catalogue, scored, loose), method_views(catalogue, scored, loose)
        pages = Pages(catalogue, scored, tasks, methods, facts, index.file)
        written = sum(_write(out, page) for page in pages.all())
        listed = [item.run for field in every for row in field.rows for item in row.outcomes]
        labels = {run_id: job.label for job in jobs for _, run_id, _, _ in job.runs}
        written += sum(_write(out, page) for page in pages.runs(listed, labels, suites_of))
        _write(out, Page("data/runs.csv", runs_csv(runs)))
        shutil.copytree(SITE / "static", out / "static")
        about = {"fingerprint": facts.fingerprint, "runs": len(runs), "suites": [board.name for board in scored]}
        _write(out, Page(MARKER, json_text(about)))
    return SiteSummary(out, written + len(runs), len(runs), facts.fingerprint)


def fingerprint(runs: Sequence[Summary]) -> str:
    """Twelve hex digits that name a set of records, whatever order they came in."""
    digest = hashlib.sha256()
    for run in sorted(runs):
        digest.update(repr(tuple(run)).encode())
    return digest.hexdigest()[:12]


def _runs_in(boards: Sequence[TaskBoard]) -> Iterator[Summary]:
    for board in boards:
        for row in board.field.rows:
            yield from (item.run for item in row.outcomes if item.status != MISSING)


@contextlib.contextmanager
def _run_pages(writer: RunPages, jobs: Sequence[Job], total: int, progress: Progress | None) -> Iterator[None]:
    """Write the pages of all runs: in worker processes beside the body of the `with` when there are many."""
    chunks = list(_chunks(jobs))
    done = 0
    if total < _PARALLEL_FROM:
        yield
        for chunk in chunks:
            done += writer.write(chunk)
            if progress:
                progress(done, total)
        return
    # Rendering leaves no cycles behind, so the workers do without the collector and are an eighth faster.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, initializer=gc.disable) as pool:
        futures = [pool.submit(writer.write, chunk) for chunk in chunks]
        try:
            yield
            for future in as_completed(futures):
                done += future.result()
                if progress:
                    progress(done, total)
        finally:
            for future in futures:
                future.cancel()


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    chunk: list[Job] = []
    held = 0
    for job in jobs:
        chunk.append(job)
        held += len(job.runs)
        if held >= _RUNS_PER_CHUNK:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _write(out: Path, page: Page) -> int:
    path = out / page.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.text, encoding="utf-8", newline="\n")
    return 1


def _check_replaceable(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UsageError(
            f"'{out}' is not empty and holds no site, so it is left alone. Name another folder with --out."
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"'{out}' is a file. Name a folder with --out.")


def _swap(fresh: Path, out: Path) -> None:
    """Put `fresh` in the place of `out`. Only between two renames is there no site, and `_recover` mends that."""
    old = _old(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _recover(out: Path) -> None:
    """Bring back the old site when an earlier build died between its two renames."""
    if not out.exists() and _old(out).is_dir():
        _old(out).rename(out)


def _lock(out: Path) -> Path:
    """The lock of a site lies in the cache folder, so that nothing is left beside the site."""
    return cache_folder() / "locks" / f"{hashlib.sha256(str(out).encode()).hexdigest()[:16]}.lock"


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.old"
