"""What the harness adds to a run: the whole job, engine to record, beside the bare loop of the same operations.

pytest tests/benchmarks/test_bench_overhead.py -m benchmark_session -s
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare, warm_modules
from selfbench.suite.engine.runner import run
from selfbench.suite.record import Record
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import expand

pytestmark = pytest.mark.benchmark_session
PAIRS = 8


@pytest.fixture
def long_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SELFBENCH_PATH", str(Path(__file__).parent / "long_digits.py"))
    monkeypatch.setenv("SELFBENCH_FROZEN_MB", "0")  # Both sides compute every pass.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Silent:
    def started(self, spec: RunSpec, under_way: int) -> None: ...
    def tick(self, shares: dict[str, float]) -> None: ...
    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None: ...


@pytest.mark.usefixtures("long_digits")
@pytest.mark.parametrize(("method", "task"), [("source", "digits-c-sixty-rounds"), ("tent", "digits-c-twenty-rounds")])
def test_a_job_beside_the_bare_loop(benchmark: BenchmarkFixture, tmp_path: Path, method: str, task: str) -> None:
    """By turns, in one thread each; `ratio` is the median over pairs.

    Each side of each pair has a fresh process, or fork server: what a process happens to be like for as long as it
    lives, such as where its memory lies, must not pass for the harness.
    """
    specs = expand(tasks=[task], methods=[method], seeds=[0])
    pairs: list[tuple[float, float]] = []
    with LocalExecutor(1, warm=warm_modules(specs)) as executor:
        prepare(specs, executor, Store(tmp_path / "prepare"), lambda _: None)

    def harness() -> tuple[float, float]:
        with LocalExecutor(1, warm=warm_modules(specs)) as executor:
            start = time.perf_counter()
            summary = run(specs, Store(tmp_path / str(len(pairs))), executor, _Silent())
            return time.perf_counter() - start, summary.finished[0].metrics["error"]

    def alone() -> tuple[float, float]:
        called = [sys.executable, str(Path(__file__).with_name("bare_loop.py")), method, task]
        told = json.loads(subprocess.run(called, check=True, capture_output=True, text=True).stdout)
        return told["seconds"], told["error"]

    def pair() -> None:
        first, second = (harness, alone) if len(pairs) % 2 else (alone, harness)
        found = {first: first(), second: second()}
        pairs.append((found[harness][0], found[alone][0]))
        assert found[harness][1] == pytest.approx(found[alone][1], abs=2e-3)

    benchmark.pedantic(pair, rounds=PAIRS)
    benchmark.extra_info["ratio"] = ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print("\n" + ", ".join(f"{ours:.1f}/{theirs:.1f}" for ours, theirs in pairs))
    print(f"{method}: {ours:.1f} s in the harness, {theirs:.1f} s alone, ratio {ratio:.3f}")
