"""The leaderboard's own evaluator on what submissions hold: it finds every file, and its metrics are those of records.

The evaluator is `examples/evaluate.py` of github.com/p-lambda/wilds. The package wilds does not carry it and no copy
stands here: SELFBENCH_WILDS_EVALUATOR names the file, and without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite.bundle import BundleFolder
from selfbench.tasks.wilds.boxes import DETECTIONS
from selfbench.tasks.wilds.task import OFFICIAL, WildsTask

VARIABLE = "SELFBENCH_WILDS_EVALUATOR"
IN_CONTEXT = """
import os, runpy, sys, warnings
from selfbench.tasks.wilds.compat import usable
warnings.simplefilter("ignore")
with usable(published_counts=False):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the script as it is where the package works with today's libraries, and miniatures pass for the data sets."""


@pytest.fixture(scope="session")
def evaluator() -> Path:
    given = os.environ.get(VARIABLE)
    if not given:
        pytest.skip(f"set {VARIABLE} to the path of examples/evaluate.py of github.com/p-lambda/wilds")
    path = Path(given).resolve()
    assert path.is_file(), f"{VARIABLE} names {path}, which is no file"
    return path


def evaluated(evaluator: Path, name: str, predictions: Path, data: Path, out: Path) -> dict[str, dict[str, float]]:
    """What the evaluator writes of one data set: split -> metric -> mean over replicates, or `_std`."""
    out.mkdir()
    words = [predictions / name, out, "--dataset", name, "--root_dir", data / "wilds"]
    starter = f"import sys; sys.argv = {[str(word) for word in (evaluator, *words)]!r}\n{IN_CONTEXT}"
    done = subprocess.run(
        [sys.executable, "-c", starter], capture_output=True, text=True, timeout=300, check=False, cwd=out
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, float]] = json.loads((out / f"{name}_results.json").read_text())
    return results


def sealed(task: WildsTask, labels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Random outputs for the examples of `labels`, as a method's process hands them to the scorer."""
    n = len(labels)
    if task.dataset == "py150":
        return draw.integers(0, task.n_classes, (n, labels.shape[-1]), dtype=np.int32)
    if task.dataset == "globalwheat":
        found = np.zeros((n, DETECTIONS, 6), np.float32)
        corners = draw.uniform(0, 32, (n, 3, 2))
        found[:, :3, :2], found[:, :3, 2:4] = corners, corners + draw.uniform(4, 32, (n, 3, 2))
        found[:, :3, 4], found[:, :3, 5] = draw.uniform(0.5, 1, (n, 3)), 1
        return found
    width = 1 if task.dataset == "poverty" else task.n_classes
    return draw.standard_normal((n, width)).astype(np.float32)


@pytest.mark.parametrize(
    "name", ["camelyon17", "iwildcam", "fmow", "rxrx1", "civilcomments", "amazon", "poverty", "py150", "globalwheat"]
)
def test_the_evaluator_reads_all_files_and_says_what_records_say(
    evaluator: Path,
    wilds_data: Path,
    at_home: Path,
    bundles: Callable[[str], BundleFolder],
    miniature: Callable[[str], WildsTask],
    tmp_path: Path,
    name: str,
) -> None:
    task, bundle = miniature(name), bundles(name)
    own: dict[str, list[dict[str, float]]] = {}
    for seed in range(task.replicates):
        draw, split, predicted = np.random.default_rng([seed, 5]), task.split(bundle, seed), {}
        for part, official in OFFICIAL.items():
            if not len(indices := getattr(split, part)):
                continue
            scored = task.labels(bundle.private(), indices)
            outputs = sealed(task, scored, draw)
            predicted[part] = task.predicted(outputs)
            metrics = task.score(outputs, scored).metrics
            own.setdefault(official, []).append({key: metrics[ours] for key, ours in task.official_metrics.items()})
        for file, content in task.submission(seed, predicted).items():
            path = tmp_path / "predictions" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    theirs = evaluated(evaluator, name, tmp_path / "predictions", wilds_data, tmp_path / "out")
    assert set(theirs) == set(own)
    compared = 0
    for official, metrics_of in theirs.items():
        for metric in task.official_metrics:
            if metric in metrics_of:
                values = [of_seed[metric] for of_seed in own[official]]
                assert metrics_of[metric] == pytest.approx(np.mean(values), abs=1e-6)
                assert metrics_of[f"{metric}_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
                compared += 1
    assert compared >= len(theirs)
