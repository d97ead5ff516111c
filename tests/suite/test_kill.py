"""kill -9 of a whole campaign, at any moment, tears no record, loses no finished run, and is completed by the same
command."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from selfbench.suite import record as records
from selfbench.suite.store import Store
from selfbench.suite.suites import load_suite

SPECS = ["run", "-t", "toy-stream", "-m", "source", "-m", "norm", "-m", "tent", "-s", "0-3"]
RUNS = 12


def start(results: Path, specs: list[str], output: Path = Path(os.devnull)) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "selfbench.suite", *specs, "--results", str(results)]
    with output.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and everything below it, in any order, as a crash of the machine would."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
        random.shuffle(family)
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.send_signal(signal.SIGKILL)
    process.wait()


def finished(results: Path) -> dict[Path, bytes]:
    """The record files, each of which must be whole."""
    found = {}
    for path in results.glob("[!.]*/*/*.json"):
        raw = path.read_bytes()
        assert records.decode(raw, str(path)).status == "ok"
        found[path] = raw
    return found


def first_record(results: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 900
    while not (results.exists() and finished(results)):
        assert process.poll() is None, "the campaign ended without a record"
        assert time.monotonic() < deadline, "no record in fifteen minutes"
        time.sleep(0.2)


def campaign_survives(results: Path, specs: list[str], runs: int, kills: int, window: float, seed: int) -> None:
    rng = random.Random(seed)
    before: dict[Path, bytes] = {}
    for number in range(kills):
        process = start(results, specs)
        if number == kills // 5 and not before:
            # The first fifth meets the preparation, which may last longer than any window; the others meet runs.
            first_record(results, process)
        time.sleep(rng.uniform(0.3, window))
        kill_tree(process)
        now = finished(results) if results.exists() else {}
        assert before.items() <= now.items(), "a finished record was lost or written again"
        before = now
        if len(before) == runs:
            # All done: begin anew, so that every kill meets a campaign under way.
            for path in before:
                path.unlink()
            before = {}
    assert start(results, specs).wait(timeout=900) == 0
    after = finished(results)
    assert before.items() <= after.items()
    assert len(after) == runs
    strays = [path for path in results.glob("[!.]*/*/*") if path not in after]
    assert not strays, "a kill left something among the records"


def test_kill_and_run_again(tmp_path: Path) -> None:
    campaign_survives(tmp_path / "results", SPECS, RUNS, kills=4, window=9.0, seed=0)


@pytest.mark.slow
def test_fifty_kills_of_quick(tmp_path: Path) -> None:
    """The real suite: every kill falls anywhere from start-up to late in the campaign."""
    runs = len(load_suite("quick").specs)
    campaign_survives(tmp_path / "results", ["run", "--suite", "quick"], runs, kills=50, window=40.0, seed=1)


def test_two_campaigns_at_once_neither_lose_nor_double(tmp_path: Path) -> None:
    results = tmp_path / "results"
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for process, output in [(start(results, SPECS, output), output) for output in outputs]:
        assert process.wait(timeout=300) == 0, output.read_text()
    assert len(finished(results)) == RUNS
    with Store(results).index() as index:
        assert len(index) == RUNS
        assert not index.broken()


def test_a_worker_killed_alone_is_started_again(tmp_path: Path) -> None:
    """An infrastructure failure is retried and the run resumes; the method is not blamed."""
    results = tmp_path / "results"
    specs = ["run", "-t", "toy-adaptation", "-m", "supervised", "-s", "0"]
    process = start(results, specs)
    killed = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for claim in results.glob(".work/*/claim"):
            for pid in _holders(claim):
                if not killed:
                    time.sleep(0.3)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed = True
        time.sleep(0.02)
    assert process.wait(timeout=60) == 0
    assert killed
    [raw] = finished(results).values()
    assert records.decode(raw).provenance.attempt == 2


def _holders(file: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(item.path == str(file) for item in process.open_files()):
                found.append(process.pid)
    return found
