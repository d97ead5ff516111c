"""Methods that break the rules end in a record that says so; nothing else is harmed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.errors import MethodError
from selfbench.suite.prepare.bundles import bundle_folder
from selfbench.suite.protocols.context import as_logits

SHORT = {"wall_seconds": 4}


@pytest.mark.parametrize(
    ("method", "status", "says"),
    [
        ("raises", "failed", "the fourth batch is unlucky"),
        ("nan", "failed", "run it with a smaller learning rate (`selfbench info` names"),
        ("wrong-shape", "failed", "shape (50,)"),
        ("wrong-type", "failed", "returned a list for batch 0; return its logits, a tensor ("),
        ("exits", "failed", "exit code 0"),
        ("crashes", "failed", "signal 11"),
        ("goes-on", "failed", "method 'goes-on' went on after its budget"),
        ("cheats-order", "failed", "out of order"),
    ],
)
def test_breaking_the_contract_is_a_failed_record(campaign, method: str, status: str, says: str) -> None:
    summary = campaign("toy-stream", method)
    [record] = summary.finished
    assert record.status == status
    assert says in record.reason
    assert not record.metrics
    assert not summary.lost


def test_others_are_not_harmed(campaign) -> None:
    summary = campaign("toy-stream", "raises", "source", "crashes", "norm")
    assert {record.spec.method.name: record.status for record in summary.finished} == {
        "raises": "failed",
        "source": "ok",
        "crashes": "failed",
        "norm": "ok",
    }


def test_a_hanging_method_is_killed_at_its_wall_limit(campaign) -> None:
    started = time.monotonic()
    [record] = campaign("toy-stream", "hangs", budget=SHORT).finished
    assert record.status == "timeout"
    assert "4 seconds" in record.reason
    assert time.monotonic() - started < 30


def test_garbage_on_the_line_cannot_stop_the_scorer(campaign) -> None:
    [record] = campaign("toy-stream", "bad-frame", budget=SHORT).finished
    assert record.status in ("failed", "timeout")


@pytest.mark.parametrize("method", ["eats-memory", "eats-memory-in-child"])
def test_eating_memory_is_out_of_memory(campaign, method: str) -> None:
    [record] = campaign("toy-stream", method, budget={"memory_mb": 1024}).finished
    assert record.status == "oom"
    assert "--budget memory_mb=N" in record.reason


@pytest.mark.parametrize(
    ("kind", "says", "remedy"),
    [
        ("device", "OutOfMemoryError: CUDA out of memory", "a GPU with more memory"),
        ("python", "MemoryError;", "--budget memory_mb=N"),
        ("torch", "can't allocate memory", "--budget memory_mb=N"),
        ("system", "Cannot allocate memory", "--budget memory_mb=N"),
    ],
)
def test_running_out_of_memory_names_the_remedy(campaign, kind: str, says: str, remedy: str) -> None:
    [record] = campaign("toy-stream", {"name": "finds-no-memory", "params": {"kind": kind}}).finished
    assert record.status == "oom"
    assert says in record.reason
    assert remedy in record.reason
    assert record.started


def test_children_do_not_survive(campaign) -> None:
    [record] = campaign("toy-stream", "spawns").finished
    assert record.status == "ok"
    time.sleep(0.5)
    alive = [process for process in psutil.process_iter(["cmdline"]) if _is_marked(process)]
    assert not alive


def _is_marked(process: psutil.Process) -> bool:
    try:
        return "selfbench-test-child" in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_used_up_budget_ends_cleanly_with_the_last_predictor(campaign) -> None:
    budget = {"limit": 6000}
    [record] = campaign("toy-stream", "greedy", budget=budget).finished
    assert record.status == "ok"
    assert record.budget_used_up
    assert record.cost.passes <= 6000
    # A copied teacher counts: 5 batches of 50 images, each 20 teacher passes and one of the model.
    assert record.cost.forward == 5 * 50 * 21 + 50 * 15
    [source] = campaign("toy-stream", "source", folder="other").finished
    assert record.metrics == source.metrics


def test_a_loss_that_is_no_scalar_is_explained(campaign) -> None:
    [record] = campaign("toy-adaptation", "bad-loss").finished
    assert record.status == "failed"
    assert "scalar" in record.reason


def test_a_walk_through_the_process_finds_no_label(campaign, tmp_path: Path) -> None:
    campaign("toy-stream", "source", folder="prepared")
    task = registry.get("task", "toy-stream")
    folder = bundle_folder(task)
    loaded = task.load()()
    stream = loaded.stream(folder, 0)
    needle = tmp_path / "needle.npy"
    np.save(needle, np.array(folder.private()["labels"])[stream.indices])

    report = tmp_path / "report.json"
    params = {"needle": str(needle), "report": str(report)}
    [record] = campaign("toy-stream", {"name": "walks", "params": params}).finished
    assert record.status == "ok", record.reason
    assert json.loads(report.read_text()) == []


def test_the_walk_would_find_a_leaked_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The walk itself is not blind: it finds an array of labels that this process holds."""
    import sys
    import types

    walks = registry.get("method", "walks").load()
    needle = tmp_path / "needle.npy"
    truth = np.arange(400) % 7
    np.save(needle, truth)
    leak = types.ModuleType("leaky")
    leak.labels = truth.copy()
    monkeypatch.setitem(sys.modules, "leaky", leak)
    assert walks(needle=str(needle)).walk()


def test_logits_of_another_shape_say_what_to_return() -> None:
    with pytest.raises(MethodError, match=r"shape \(5,\) for batch 3; expected \(5, 2\): return a row for"):
        as_logits(torch.zeros(5), 5, 2, "mine", "batch", 3)
