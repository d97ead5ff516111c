"""What the harness adds to a run: the whole job, engine to record, beside the bare loop of the same operations.

pytest tests/benchmarks/test_bench_overhead.py -m benchmark_session -s
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite import registry
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare, warm_modules
from selfbench.suite.engine.runner import run
from selfbench.suite.prepare import bundle_folder
from selfbench.suite.protocols.stream import Source
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


def bare(spec: RunSpec) -> float:
    """Load, predict batch by batch, and take the error: no meter, no other process, no record."""
    method_class, task = registry.get("method", spec.method.name).load(), registry.get("task", spec.task.name).load()()
    bundle = bundle_folder(registry.get("task", spec.task.name))
    public = bundle.public()
    model = task.model()
    model.load_state_dict(bundle.model())
    stream = task.stream(bundle, spec.seed)
    method = method_class(**spec.method.params)
    method.setup(model.eval(), Source(task.n_classes, torch.device("cpu"), torch.Generator().manual_seed(0)))
    logits = [
        method.predict(task.images(public, stream.indices[start:stop])).detach().numpy()
        for start, stop in zip(stream.cuts[:-1], stream.cuts[1:], strict=True)
    ]
    labels = task.labels(bundle.private(), stream.indices)
    return float(task.score(np.concatenate(logits), labels, stream.domains, stream.domain_names).metrics["error"])


@pytest.mark.usefixtures("long_digits")
@pytest.mark.parametrize(("method", "task"), [("source", "digits-c-sixty-rounds"), ("tent", "digits-c-twenty-rounds")])
def test_a_job_beside_the_bare_loop(benchmark: BenchmarkFixture, tmp_path: Path, method: str, task: str) -> None:
    """By turns, in one thread each; `ratio` is the median over pairs."""
    specs = expand(tasks=[task], methods=[method], seeds=[0])
    pairs: list[tuple[float, float]] = []
    with LocalExecutor(1, warm=warm_modules(specs)) as executor:
        prepare(specs, executor, Store(tmp_path / "prepare"), lambda _: None)

        def pair() -> None:
            start = time.perf_counter()
            summary = run(specs, Store(tmp_path / str(len(pairs))), executor, _Silent())
            middle = time.perf_counter()
            error = bare(specs[0])
            pairs.append((middle - start, time.perf_counter() - middle))
            assert summary.finished[0].metrics["error"] == pytest.approx(error, abs=2e-3)

        benchmark.pedantic(pair, rounds=PAIRS)
    benchmark.extra_info["ratio"] = ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    harness, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    print("\n" + ", ".join(f"{ours:.1f}/{theirs:.1f}" for ours, theirs in pairs))
    print(f"{method}: {harness:.1f} s in the harness, {alone:.1f} s alone, ratio {ratio:.3f}")
