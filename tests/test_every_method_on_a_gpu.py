"""Every registered method of streams and adaptation that a task of `TASKS` fits computes on a GPU what it computes on
the CPU, up to rounding that training amplifies.

Methods of the protocol policy are not among them: what they learn from is sampled, on a GPU by other random numbers, so
that a run there and one on the CPU are as two seeds. That a GPU samples by the same probabilities is tested in
`tests/suite/test_sampling.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.data import Data
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare, warm_modules
from selfbench.suite.engine.runner import run
from selfbench.suite.places import data_folder
from selfbench.suite.record import Record
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import Settings, expand, misfit

ROOM = Path(registry.PACKAGE)
SHORT = {"note": {"source_steps": 20}, "rmt-replay": {"warmup_images": 600}, "vida-pretrained": {"pretrain_steps": 20}}
"""Methods that train on source data before the stream, for less long than they would."""
TASKS = ("digits-c-continual", "digits-semi", "mnist-to-digits", "cifar10-jpeg-c-continual")
"""In the order of preference."""
PASSES = {"stream": 6_000, "adaptation": 12_000}
NAME = "test_gpu_agrees_with_the_cpu"
APART = 0.1
"""How far the two errors may lie apart: a filter that once decides otherwise goes another way."""


class Silent:
    """A watcher that says nothing."""

    def started(self, spec: RunSpec, under_way: int) -> None: ...
    def tick(self, shares: dict[str, float]) -> None: ...
    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None: ...


def ours() -> list[registry.Entry]:
    return [
        entry for entry in registry.entries("method").values()
        if ROOM in entry.file.parents and entry.module and entry.protocol in PASSES
    ]  # fmt: skip


def task_of(method: registry.Entry) -> str | None:
    return next((name for name in TASKS if not misfit(method, registry.get("task", name))), None)


def spec(method: registry.Entry, device: str) -> RunSpec | None:
    name = task_of(method)
    if name is None or not all(
        Data(data_folder()).present(data) for data in registry.get("task", name).options["data"]
    ):
        return None
    [found] = expand(
        tasks=[name],
        methods=[{"name": method.name, "params": SHORT.get(method.name, {})}],
        seeds=[0],
        settings=Settings(device=device),
        budget={"limit": PASSES[method.protocol]},
    )
    return found


@pytest.fixture(scope="module")
def records(toys: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Both records of each selected method by run id, from one campaign on all cores."""
    methods = [
        item.callspec.params["method"] for item in request.session.items if getattr(item, "originalname", "") == NAME
    ]
    specs = [found for method in methods for device in ("cuda", "cpu") if (found := spec(method, device))]
    store = Store(tmp_path_factory.mktemp("gpu") / "results")
    with LocalExecutor(max(1, (os.cpu_count() or 1) - 2), (0,), warm_modules(specs)) as executor:
        prepare(specs, executor, store, lambda text: None)
        finished = run(specs, store, executor, Silent()).finished
    return {record.run_id: record for record in finished}


@pytest.mark.gpu
@pytest.mark.parametrize("method", ours(), ids=lambda method: method.name)
def test_gpu_agrees_with_the_cpu(method: registry.Entry, request: pytest.FixtureRequest) -> None:
    there, here = spec(method, "cuda"), spec(method, "cpu")
    if there is None or here is None:
        pytest.skip("no task of TASKS fits, or its data is not here")
    records: dict[str, Record] = request.getfixturevalue("records")
    gpu, cpu = records[there.run_id], records[here.run_id]
    assert gpu.status == "ok", gpu.reason
    assert cpu.status == "ok", cpu.reason
    assert gpu.provenance.gpu
    assert gpu.cost.gpu_seconds > 0
    assert gpu.cost.passes == pytest.approx(cpu.cost.passes, rel=0.1)
    assert gpu.metrics["error"] == pytest.approx(cpu.metrics["error"], abs=APART)


def test_tasks_are_found_for_most_methods() -> None:
    assert len({method.name for method in ours() if task_of(method)}) > 40
