"""What cannot be prepared ends in records that say why and what to type; all else runs, nothing computed is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import Preparation
from selfbench.suite.engine.runner import Summary, missing, run
from selfbench.suite.places import cache_folder
from selfbench.suite.plan import states
from selfbench.suite.prepare.bundles import bundle_folder
from selfbench.suite.record import Record
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import expand

BOTH = ["toy-fragile", "toy-stream"]


class Silent:
    """Hears of everything and says nothing."""

    def started(self, spec: RunSpec, under_way: int) -> None: ...
    def tick(self, shares: dict[str, float]) -> None: ...
    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None: ...


@pytest.fixture
def wish() -> Iterator[Path]:
    """The file that says what becomes of `toy-fragile`, which is prepared anew: at first it is not there."""
    file = cache_folder() / "toy-fragile"
    shutil.rmtree(bundle_folder(registry.get("task", "toy-fragile")).path, ignore_errors=True)
    yield file
    file.unlink(missing_ok=True)


def specs_of(*tasks: str, method: str = "source", seeds: tuple[int, ...] = (0, 1)) -> list[RunSpec]:
    return expand(tasks=tasks, methods=[method], seeds=seeds)


def campaign(specs: list[RunSpec], executor: LocalExecutor, store: Store, *, replace: bool = False) -> Summary:
    todo = specs if replace else missing(specs, store)
    preparation = Preparation(todo, executor, store, lambda text: None)
    return run(specs, store, executor, Silent(), preparation=preparation, replace=replace)


def by_task(summary: Summary) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in summary.finished:
        found.setdefault(record.spec.task.name, []).append(record.status)
    return found


def test_runs_that_could_not_begin_have_a_record_and_the_same_command_takes_them_up(
    wish: Path, executor: LocalExecutor, tmp_path: Path
) -> None:
    store, specs = Store(tmp_path), specs_of(*BOTH)
    first = campaign(specs, executor, store)
    assert by_task(first) == {"toy-fragile": ["failed"] * 2, "toy-stream": ["ok"] * 2}
    assert not first.all_well
    fragile = [spec for spec in specs if spec.task.name == "toy-fragile"]
    for spec in fragile:
        record = store.read(spec)
        assert record.reason == f"Task 'toy-fragile' could not be prepared: {wish} is missing.\nType `touch {wish}`."
        assert not record.started
        assert not record.metrics
        assert record.cost.seconds == record.cost.passes == 0
        assert record.provenance.command == f"selfbench run -t toy-fragile -m source -s {spec.seed} --device cpu"
    assert missing(specs, store) == fragile
    assert [(row.state, row.unprepared, row.to_do) for row in states(fragile, store)] == [("failed", True, True)] * 2
    wish.touch()
    again = campaign(specs, executor, store)
    assert by_task(again) == {"toy-fragile": ["ok"] * 2}
    assert again.skipped == 2
    assert {record.provenance.attempt for record in again.finished} == {2}
    assert all(record.started for record in again.finished)
    assert not missing(specs, store)


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("memory", "oom", ["CUDA out of memory", "; make room", "(log: "]),
        ("killed", "failed", ["signal 9, as a system does when memory runs out", "(log: "]),
    ],
)
def test_preparing_can_run_out_of_memory(
    wish: Path, executor: LocalExecutor, tmp_path: Path, text: str, status: str, says: list[str]
) -> None:
    wish.write_text(text)
    [record] = campaign(specs_of("toy-fragile", seeds=(0,)), executor, Store(tmp_path)).finished
    assert record.status == status
    assert [part for part in says if part not in record.reason] == []


def test_the_record_of_a_run_is_not_replaced_by_one_that_it_could_not_begin(
    wish: Path, executor: LocalExecutor, tmp_path: Path
) -> None:
    store, specs = Store(tmp_path), specs_of("toy-fragile", method="raises", seeds=(0,))
    wish.touch()
    [before] = campaign(specs, executor, store).finished
    assert before.started
    shutil.rmtree(bundle_folder(registry.get("task", "toy-fragile")).path)
    wish.unlink()
    summary = campaign(specs, executor, store, replace=True)
    assert not summary.finished
    [(spec, reason)] = summary.lost
    assert "the record of before stays" in reason
    assert str(wish) in reason
    assert store.read(spec) == before


def test_retry_takes_up_what_could_not_begin(wish: Path, executor: LocalExecutor, tmp_path: Path) -> None:
    store, specs = Store(tmp_path), specs_of("toy-fragile", seeds=(0,))
    campaign(specs, executor, store)
    [again] = campaign(specs, executor, store, replace=True).finished
    assert (again.status, again.started, again.provenance.attempt) == ("failed", False, 2)
    wish.touch()
    [done] = campaign(specs, executor, store, replace=True).finished
    assert (done.status, done.provenance.attempt) == ("ok", 3)


def test_a_checkpoint_of_before_outlives_a_preparation_that_failed(
    wish: Path, executor: LocalExecutor, tmp_path: Path
) -> None:
    store, specs = Store(tmp_path), specs_of("toy-fragile", seeds=(0,))
    left = [store.work(specs[0]) / name for name in ("checkpoint.pt", "scorer.npz", "rollouts/1")]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"what was computed")
    campaign(specs, executor, store)
    assert all(file.read_bytes() == b"what was computed" for file in left)


def test_runs_that_have_all_they_need_go_on_while_another_task_is_prepared(
    wish: Path, executor: LocalExecutor, tmp_path: Path
) -> None:
    wish.write_text(f"wait for {tmp_path}")
    summary = campaign(specs_of("toy-stream", "toy-fragile"), executor, Store(tmp_path))
    assert by_task(summary) == {"toy-stream": ["ok"] * 2, "toy-fragile": ["ok"] * 2}


def test_a_part_of_the_frozen_cache_that_cannot_be_made_holds_up_the_runs_that_need_it(
    wish: Path, executor: LocalExecutor, tmp_path: Path
) -> None:
    wish.touch()
    store, cache = Store(tmp_path), cache_folder() / "frozen"
    specs = [*specs_of("toy-fragile", seeds=(0,)), *specs_of("toy-fragile", method="tent", seeds=(0,))]
    shutil.rmtree(cache, ignore_errors=True)
    cache.touch()
    try:
        summary = campaign(specs, executor, store)
    finally:
        cache.unlink()
    found = {record.spec.method.name: record for record in summary.finished}
    assert "could not be prepared: FileExistsError" in found["source"].reason
    assert not found["source"].started
    assert found["tent"].status == "ok"


def test_missing_model_extra_and_template_are_named_in_records(
    tiny_hub_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for file in tiny_hub_model.glob("chat_template*"):
        file.unlink()
    store = Store(tmp_path / "results")
    causes = ["toy-without-model", "toy-without-template", "toy-without-extra"]
    specs = [*specs_of(*causes, method="sft", seeds=(0,)), *specs_of("toy-stream", seeds=(0,))]
    with LocalExecutor(2) as executor:
        summary = campaign(specs, executor, store)
    found = {record.spec.task.name: record for record in summary.finished}
    assert {name: record.status for name, record in found.items()} == {
        "toy-stream": "ok", **dict.fromkeys(causes, "failed"),
    }  # fmt: skip
    assert "Type `selfbench data fetch math`" in found["toy-without-model"].reason
    assert f"{tiny_hub_model} has no chat template. Put the template" in found["toy-without-template"].reason
    assert "peft: type `pip install 'selfbench[language]'`" in found["toy-without-extra"].reason
    assert missing(specs, store) == specs[:3]


def test_the_command_line_says_what_could_not_begin_and_what_to_type(cli, tmp_path: Path) -> None:
    cache = {"SELFBENCH_CACHE": str(tmp_path / "cache")}
    words = ["-t", "toy-fragile", "-t", "toy-stream", "-m", "source", "-s", "0,1"]
    called = cli("run", *words, **cache)
    assert called.code == 1, called.err
    assert "Traceback" not in called.err
    reason = f"Type `touch {tmp_path / 'cache' / 'toy-fragile'}`"
    assert called.err.count(reason) == 1
    assert "2 runs of toy-fragile did not begin" in called.err
    assert "the same command" in called.err
    assert "2 runs well, 2 failed" in called.err
    told = cli("status", *words, **cache)
    assert told.out.count(reason) == 1
    assert "2 failed, 2 ok" in told.out
    planned = cli("plan", *words, **cache)
    assert "4 runs, 2 to do" in planned.out
    assert "first: build toy-fragile" in planned.out
    (tmp_path / "cache" / "toy-fragile").touch()
    again = cli("run", *words, **cache)
    assert again.code == 0, again.err
    assert "2 runs well, 0 failed, 0 without a new record, 2 were there before" in again.err


def test_what_another_process_writes_after_the_first_look_is_taken(
    executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two campaigns on one folder: a run that ends between this one's looks at the folder is no loss."""
    specs = specs_of("toy-stream", seeds=(0,))
    elsewhere, store = Store(tmp_path / "elsewhere"), Store(tmp_path / "here")
    assert campaign(specs, executor, elsewhere).all_well
    read = Store.read

    def late(self: Store, spec: RunSpec) -> Record | None:
        found = read(self, spec)
        store.path(spec).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(elsewhere.path(spec), store.path(spec))
        return found

    preparation = Preparation(specs, executor, store, lambda text: None)
    monkeypatch.setattr(Store, "read", late)
    summary = run(specs, store, executor, Silent(), preparation=preparation)
    assert summary.all_well
    assert summary.finished == [read(elsewhere, specs[0])]
