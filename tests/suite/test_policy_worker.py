"""The protocol `policy` through the real worker: the method's process holds no answer of the evaluation."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.prepare.bundles import build
from selfbench.suite.prepare.frozen import frozen_folders
from selfbench.suite.run.report import packages_of
from selfbench.tasks.language.gsm8k_code import GSM8KCode

TASK = "arithmetic-tiny"
SHORT = {"limit": 60_000}


@pytest.fixture
def needle(tmp_path: Path) -> Path:
    """The true answers of the evaluation of seed 0."""
    entry = registry.get("task", TASK)
    bundle, task = build(entry), entry.load()()
    answers = [int(answer) for answer in task.answers(bundle.private(), task.problems(bundle, 0).test)]
    np.save(tmp_path / "needle.npy", np.array(answers))
    return tmp_path / "needle.npy"


def test_a_walk_through_the_process_finds_no_answer(campaign, tmp_path: Path, needle: Path) -> None:
    report = tmp_path / "report.json"
    params = {"needle": str(needle), "report": str(report)}
    [record] = campaign(TASK, {"name": "policy-walks", "params": params}, budget=SHORT).finished
    assert record.status == "ok", record.reason
    assert json.loads(report.read_text()) == []


def leaked(needle: Path, form: str) -> object:
    truth = np.load(needle)
    texts = [str(answer) for answer in truth.tolist()]
    if form == "numbers":
        return truth.astype(np.uint8)
    if form == "packed":
        return np.frombuffer(np.array([text.encode() for text in texts], np.bytes_).tobytes(), np.uint8)
    return {"nothing": None, "texts": texts, "joined": ",".join(texts)}[form]


@pytest.mark.parametrize("form", ["nothing", "numbers", "texts", "packed", "joined"])
def test_the_walk_is_not_blind(needle: Path, form: str) -> None:
    hidden = {"somewhere": leaked(needle, form)}
    # Files that other tests hold open in this process are no objects of this one.
    walked = registry.get("method", "policy-walks").load()(needle=str(needle)).walk()
    found = [item for item in walked if not item.startswith("open file")]
    assert bool(found) == (hidden["somewhere"] is not None)


def test_a_record_of_a_policy(campaign) -> None:
    [record] = campaign(TASK, "rest-em", budget={"limit": 150_000}).finished
    assert record.status == "ok", record.reason
    assert record.budget_used_up
    assert record.primary == "accuracy"
    assert [point.x for point in record.curve] == [0, 1]
    assert record.curve[1].values["accuracy"] > record.curve[0].values["accuracy"]
    assert record.metrics["accuracy"] == record.curve[1].values["accuracy"]
    assert 0 < record.curve[1].values["tokens"] < record.cost.tokens <= 150_000
    generated, scored, trained = record.cost.tokens_apart
    assert generated + scored + trained == record.cost.tokens
    assert (generated > 0, scored, trained > 0) == (True, 0, True), "rest-em scores nothing"
    assert 0 < record.metrics["response_parse_rate"] <= 1
    assert 0 < record.diagnostics["own_parse_rate"] <= 1
    assert record.cost.labels == 300
    assert record.diagnostics["label_precision"] == 1.0
    assert record.provenance.packages.keys() == {"numpy", "torch", "transformers"}


def test_packages_that_code_imports_stand_in_the_record() -> None:
    found = packages_of("policy", (), GSM8KCode().grants().code.packages)
    assert found.keys() == {"numpy", "torch", "sympy", "transformers"}
    assert found["sympy"] == metadata.version("sympy")


@pytest.mark.parametrize(("kind", "remedy"), [("device", "a GPU with more memory"), ("python", "memory_mb=N")])
def test_a_policy_that_finds_no_memory_says_so_with_the_remedy(campaign, kind: str, remedy: str) -> None:
    method = {"name": "policy-finds-no-memory", "params": {"kind": kind}}
    [record] = campaign(TASK, method, budget=SHORT).finished
    assert record.status == "oom"
    assert remedy in record.reason
    assert record.started


def test_runs_with_and_without_the_cached_first_policy_have_equal_results(
    campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [campaign(TASK, name, folder=name, budget=SHORT).finished[0] for name in ("sft", "self-consistency")]
    paths = {frozen_folders(record.spec)["first"].path for record in specs}
    assert len(paths) == 1, "whatever the method"
    assert paths.pop().is_dir()
    monkeypatch.setenv("SELFBENCH_FROZEN_MB", "0")
    [computed] = campaign(TASK, "sft", folder="computed", budget=SHORT).finished
    assert computed.results() == specs[0].results()
    assert computed.cost.tokens == specs[0].cost.tokens
