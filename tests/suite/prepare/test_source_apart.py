"""The source's own images lie apart from a task's bundle, and are made for the methods that need them alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.plan import Need, needs
from selfbench.suite.prepare import bundles as prepare
from selfbench.suite.prepare.bundles import build, bundle_folder, data_sets, fetch_missing, source_folder
from selfbench.suite.registry import RegistryError
from selfbench.suite.registry.source import read_file
from selfbench.suite.suites import expand

TASK = "digits-c-continual"
EATA = {"name": "eata", "params": {"fisher_images": 64, "fisher_batch": 32}}
SMALL = {"limit": 4000}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))


def test_only_methods_that_need_the_source_have_it_made(campaign: Callable) -> None:
    task, own = registry.get("task", TASK), bundle_folder(registry.get("task", TASK))
    source, posterior = (source_folder(task, part) for part in ("source", "posterior"))
    for folder in (source, posterior):
        shutil.rmtree(folder.path, ignore_errors=True)
    [plain] = campaign(TASK, "source", budget=SMALL).finished
    assert [folder.exists for folder in (own, source, posterior)] == [True, False, False]
    [eata] = campaign(TASK, EATA, budget=SMALL).finished
    assert [folder.exists for folder in (own, source, posterior)] == [True, True, False]
    [petal] = campaign(TASK, "petal", budget=SMALL).finished
    assert posterior.exists
    records = (plain, eata, petal)
    assert [record.status for record in records] == ["ok"] * 3
    assert [record.reason for record in records] == [""] * 3
    origins = [record.provenance for record in records]
    assert len({origin.bundle_sha256 for origin in origins}) == 1
    assert [origin.source_sha256 for origin in origins] == [{}, {"source": source.sha256},
                                                             {"posterior": posterior.sha256}]  # fmt: skip
    prepared = [folder.facts["preparation_seconds"] for folder in (own, source, posterior)]
    expected = [prepared[0], prepared[0] + prepared[1], prepared[0] + prepared[2]]
    assert [record.cost.preparation_seconds for record in records] == pytest.approx(expected)


def test_a_plan_names_what_is_made_for_whom(own_cache: None) -> None:
    def wanted(*methods: str) -> list[Need]:
        return needs(expand(tasks=[TASK], methods=methods, seeds=[0]))

    main, source, posterior = (Need("build", name, None) for name in (TASK, f"{TASK} (source)", f"{TASK} (posterior)"))
    assert wanted("source", "tent") == [main]
    assert wanted("tent", "eata", "note") == [main, source]
    assert wanted("petal", "eata") == [main, posterior, source]
    build(registry.get("task", TASK), part="source")
    assert wanted("tent", "eata") == [main]


def test_a_posterior_is_made_with_what_it_stands_on() -> None:
    task = registry.get("task", TASK)
    folders = [source_folder(task, part) for part in ("source", "posterior")]
    for folder in folders:
        shutil.rmtree(folder.path, ignore_errors=True)
    assert build(task, part="posterior") == folders[1]
    files = [bundle_folder(task).path / "bundle.json", *(folder.path / "bundle.json" for folder in folders)]
    kept = [file.stat().st_mtime_ns for file in files]
    build(task, part="posterior")
    assert [file.stat().st_mtime_ns for file in files] == kept
    sizes = [parameter.numel() for parameter in task.load()().model().parameters()]
    assert folders[1].public()["posterior_mean"].shape == (sum(sizes),)


def test_a_data_set_of_the_source_is_asked_for_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = registry.get("task", "imagenet-c-5k-continual")
    tent, eata, petal = (registry.get("method", name) for name in ("tent", "eata", "petal"))
    assert "imagenet-train" not in data_sets([(task, tent)])
    assert data_sets([(task, tent), (task, eata)]) == [*task.options["data"], "imagenet-train"]
    assert "imagenet-train" in data_sets([(task, petal)])
    for name in task.options["data"]:
        for member in Data(tmp_path).describe(name).members:
            path = tmp_path / name / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(member.size)
    monkeypatch.setattr(prepare, "data_folder", lambda: tmp_path)
    fetch_missing(data_sets([(task, tent)]), lambda text: None)
    with pytest.raises(DataMissing, match=r"imagenet/train is missing") as caught:
        fetch_missing(data_sets([(task, eata)]), lambda text: None)
    assert "ILSVRC2012_img_train.tar" in str(caught.value)


def test_info_tells_the_data_of_the_source_beside_the_file(cli: Callable) -> None:
    shown = cli("info", "imagenet-c-5k-continual").out
    assert "data of its source: imagenet-train, imagenet, torchvision-models\n" in shown
    assert shown.rstrip().endswith("tasks/streams/imagenet.py")
    assert "data of its source" not in cli("info", "toy-stream").out


@pytest.mark.parametrize("given", ['("digits",)', '{"data": ("digits",)}', '{"bundle": "x", "data": ["digits"]}'])
def test_a_registration_that_says_it_wrong_is_refused(tmp_path: Path, given: str) -> None:
    file = tmp_path / "task.py"
    file.write_text(
        f'@register_task("wrong", protocol="stream", version="1", metric="error", title="", budget={{}}, data=(),\n'
        f"               source={given})\nclass Wrong:\n    pass\n"
    )
    with pytest.raises(RegistryError, match="source is"):
        list(read_file("task", file, None))
