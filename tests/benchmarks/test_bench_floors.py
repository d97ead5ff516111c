"""Every stream method beside its floor: counted example passes times the measured cost of one pass.

SELFBENCH_DATA=... pytest tests/benchmarks/test_bench_floors.py -m benchmark_session -s

Batches of 200 of cifar10-jpeg-c with ResNet-20 and with the ResNet-26 with group norm, one thread. A pass is the source
model's on the same batch, without gradients, taken before and after each batch of the method. Setting up (warm-up on
source data) is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.meter import Meter
from selfbench.suite.places import data_folder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.stream_loop import make_source
from selfbench.suite.spec import Budget
from selfbench.suite.suites import misfit

pytestmark = pytest.mark.benchmark_session
TASKS = ("cifar10-jpeg-c-continual", "cifar10-jpeg-c-gn-continual")
PASSES = 8_000
"""About so many passes a method, at least two batches after one to warm up."""
PAIRS = [
    (on, name)
    for on in TASKS
    for name, entry in sorted(registry.entries("method").items())
    if entry.protocol == "stream" and not misfit(entry, registry.get("task", on))
]


def bundle_of(on: registry.Entry) -> BundleFolder:
    data = Data(data_folder())
    absent = [name for name in on.options["data"] if not data.present(name)]
    if absent:
        pytest.skip(f"needs data that is not here: {', '.join(absent)}")
    return build(on)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("on", "name"), PAIRS)
def test_a_method_beside_its_floor(benchmark: BenchmarkFixture, on: str, name: str) -> None:
    where, entry = registry.get("task", on), registry.get("method", name)
    bundle = bundle_of(where)
    task: Any = where.load()()
    public, stream = bundle.public(), task.stream(bundle, 0)
    model = task.model()
    model.load_state_dict(bundle.model())
    plain = task.model()
    plain.load_state_dict(bundle.model())
    plain.eval().requires_grad_(False)
    meter = Meter(Budget(limit=1e12), name)
    meter.attach(model.eval())
    torch.manual_seed(0)
    source = make_source(task, public, model, torch.Generator().manual_seed(0), entry.options["needs"])
    method = entry.load()(**entry.params(preset=where.options["preset"]))
    method.setup(model, source)

    def images(batch: int) -> torch.Tensor:
        return task.images(public, stream.indices[stream.cuts[batch] : stream.cuts[batch + 1]])  # type: ignore[no-any-return]

    def cost(work: Any, shown: torch.Tensor) -> float:
        start = time.process_time()
        work(shown)
        return time.process_time() - start

    @torch.no_grad()
    def a_pass(shown: torch.Tensor) -> None:
        plain(shown)

    before = meter.counts.passes
    method.predict(images(0))
    batches = max(2, round(PASSES / max(1.0, meter.counts.passes - before)))
    ratios: list[float] = []
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        for batch in range(1, 1 + batches):
            shown = images(batch)
            counted = meter.counts.passes
            around = [cost(a_pass, shown) for _ in range(2)]
            own = cost(method.predict, shown)
            around += [cost(a_pass, shown) for _ in range(2)]
            seconds += own
            one = statistics.median(around) / len(shown)
            ratios.append(own / ((meter.counts.passes - counted) * one))

    benchmark.pedantic(run, rounds=1)
    per_image = (meter.counts.passes - before) / (200 * (1 + batches))
    benchmark.extra_info["ratio"] = ratio = statistics.median(ratios)
    cost_of_one = seconds / (200 * batches) * 1e3
    print(f"\n{on} {name}: {per_image:.1f} passes an image, {cost_of_one:.2f} ms, floor x {ratio:.2f}")
