"""Every registered method and task whose data is here: what `selfbench check` proves, by real runs on real data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.check import check
from selfbench.suite.data import Data
from selfbench.suite.places import data_folder
from selfbench.suite.registry import Entry
from selfbench.suite.suites import load_suite, misfit

LIMITS = {"stream": 20_000, "adaptation": 20_000, "policy": 400_000}
"""Enough to adapt to some batches and to be stopped: what is left of a stream is predicted by what then stands. Of a
policy, tokens for two or three rounds.
"""
ROOM = Path(registry.PACKAGE)
SHORT = {
    "note": {"source_steps": 20},
    "rmt-replay": {"warmup_images": 600},
    "vida-pretrained": {"pretrain_steps": 20},
    "rest-mcts": {"iterations": 3},
    "code-interpreter": {"samples": 2, "candidates": 2},
    "score": {"steps": 5, "sft_epochs": 4},
    "self-judge": {"epochs": 1},
    "agent-r": {"iterations": 1, "epochs": 1},
    "mc-cot": {"passes": 2, "epochs": 1},
}
"""Methods that train on source data before the stream, or do much in a round, for less long than they would."""


CONTROLS = ("source", "supervised", "sft")
LONG = {"gpu", "adapters"}
"""Tags of tasks whose models take too long for as many runs as a check makes; a tiny one of their layout is tested."""


def ours(kind: registry.Kind) -> list[Entry]:
    return [entry for entry in registry.entries(kind).values() if ROOM in entry.file.parents and entry.module]


def pairs() -> Iterator[tuple[Entry, Entry]]:
    """The pairs of `quick`; of the rest, every method on one task, and one task of each bundle with one method.

    Tasks that share a bundle differ in orders, strategies or numbers of labels, which have tests of their own.
    """
    quick = {(spec.method.name, spec.task.name) for spec in load_suite("quick").specs}
    early = {task for _, task in quick}
    methods, tasks = ours("method"), [task for task in ours("task") if not LONG & set(task.options["tags"])]
    met: set[str] = set()
    bundles: set[str] = set()
    for task in sorted(tasks, key=lambda task: (task.name not in early, "continual" not in task.name)):
        fitting = [method for method in methods if not misfit(method, task)]
        chosen = [method for method in fitting if (method.name, task.name) in quick or method.name not in met]
        bundle = task.options["bundle"] or task.name
        if not chosen and bundle not in bundles:
            chosen = [method for method in fitting if method.name in CONTROLS]
        for method in chosen:
            bundles.add(bundle)
            met.add(method.name)
            yield method, task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "task"), [pytest.param(*pair, id=f"{pair[0].name} on {pair[1].name}") for pair in pairs()]
)
def test_labels_do_not_leak_and_runs_repeat_and_resume(method: Entry, task: Entry, tmp_path: Path) -> None:
    data = Data(data_folder())
    absent = [name for name in task.options["data"] if not data.present(name)]
    if absent:
        pytest.skip(f"needs data that is not here: {', '.join(absent)}")
    budget = {"limit": LIMITS[task.protocol]}
    findings = list(check(method, task.name, tmp_path, budget=budget, params=SHORT.get(method.name)))
    assert len(findings) > 3
    assert not [finding for finding in findings if not finding.ok]
