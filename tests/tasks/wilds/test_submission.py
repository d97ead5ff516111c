"""Prediction files: from runs by the command line, to what the leaderboard's rules ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.errors import UsageError
from selfbench.suite.export import replicates, write_submission
from selfbench.suite.store import Store
from selfbench.tasks.wilds import compat

TASK = "small-wilds-camelyon17"


class Home:
    """A machine of its own: data root with one miniature, cache, results."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.results, self.out = root, root / "results", root / "out"
        toys = Path(__file__).parent / "toys"
        self.environment = {
            **os.environ, "SELFBENCH_DATA": str(data), "SELFBENCH_CACHE": str(root / "cache"),
            "SELFBENCH_RESULTS": str(self.results), "SELFBENCH_PATH": str(toys), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "selfbench.suite", *map(str, words)], capture_output=True, text=True, cwd=self.root,
            timeout=300, env=self.environment, check=False,
        )  # fmt: skip

    def export(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.call("export", "wilds", "-t", TASK, "-m", "supervised", "--out", self.out, *words)


@pytest.fixture(scope="module")
def home(wilds_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Both replicates have run."""
    home = Home(tmp_path_factory.mktemp("home"), wilds_data)
    done = home.call("run", "-t", TASK, "-m", "supervised", "-s", "0-1", "-j", "2")
    assert done.returncode == 0, done.stderr
    return home


def test_files_are_those_that_the_evaluator_looks_for_and_score_as_the_records_say(home: Home) -> None:
    done = home.export()
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (home.out / "camelyon17").iterdir())
    assert sorted(Path(line).name for line in done.stdout.split()) == written
    with compat.usable(published_counts=False) as wilds, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(home.environment["SELFBENCH_DATA"]) / "wilds"
        dataset = wilds.get_dataset("camelyon17", root_dir=str(root), download=False)
        splits = [split for split in dataset.split_dict if split != "train"]
        assert written == sorted(f"camelyon17_split:{split}_seed:{s}_pred.csv" for split in splits for s in (0, 1))
        for seed in (0, 1):
            predicted = [
                int(line) for line in (home.out / "camelyon17" / f"camelyon17_split:test_seed:{seed}_pred.csv").open()
            ]
            test = dataset.get_subset("test")
            results, _ = dataset.eval(torch.tensor(predicted), test.y_array, test.metadata_array)
            [record] = [
                record
                for path in (home.results / TASK / "supervised").glob("*.json")
                if (record := json.loads(path.read_text()))["spec"]["seed"] == seed
            ]
            assert record["metrics"]["accuracy"] == pytest.approx(float(results["acc_avg"]), abs=1e-6)
            assert len(record["curve"]) == 3


def test_a_run_on_pictures_of_which_only_some_are_kept_decoded_is_the_same(home: Home, tmp_path: Path) -> None:
    """With a cache of its own, in which three quarters of the pictures have room."""
    own = Home(tmp_path, Path(home.environment["SELFBENCH_DATA"]))
    own.environment["SELFBENCH_DECODED_GB"] = str(120.5 * 3 * 96 * 96 / 1e9)
    plan = own.call("plan", "-t", TASK, "-m", "supervised", "-s", "0", "--json")
    assert [(need["kind"], need["size"]) for need in json.loads(plan.stdout)["needs"]] == [
        ("build", None), ("decode", 120.5 * 27648),
    ]  # fmt: skip
    done = own.call("run", "-t", TASK, "-m", "supervised", "-s", "0")
    assert done.returncode == 0, done.stderr
    assert "120 of 160 pictures are kept decoded" in done.stdout + done.stderr
    assert "decoded at each access" in done.stdout + done.stderr
    rows = {
        name: sum(path.stat().st_size for path in (place.root / "cache" / "decoded").rglob("pixels")) / 27648
        for name, place in (("all", home), ("some", own))
    }
    assert rows == {"all": 160, "some": 120}
    digests = {
        json.loads(path.read_text())["predictions_sha256"]
        for results in (home.results, own.results)
        for path in (results / TASK / "supervised").glob("*.json")
        if json.loads(path.read_text())["spec"]["seed"] == 0
    }
    assert len(digests) == 1
    again = own.call("plan", "-t", TASK, "-m", "supervised", "-s", "1", "--json")
    assert json.loads(again.stdout)["needs"] == []


def test_nothing_under_the_results_but_records_is_seen_by_the_store(home: Home) -> None:
    done = home.call("validate", "--json")
    assert json.loads(done.stdout) == {"valid": 2, "broken": []}


def put_back(path: Path) -> Callable[[], object]:
    content = path.read_bytes()
    return lambda: path.write_bytes(content)


@pytest.fixture
def inside(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """inside(run): what the verb does, in this process."""
    for name in ("SELFBENCH_DATA", "SELFBENCH_CACHE", "SELFBENCH_PATH"):
        monkeypatch.setenv(name, home.environment[name])

    def call(run: str | None = None, method: str = "supervised", task: str = TASK) -> list[Path]:
        entry, store = registry.get("task", task), Store(home.results)
        return write_submission(entry, replicates(entry, method, store, run), store, home.root / "again")

    return call


@pytest.mark.parametrize("damage", ["missing", "torn", "short", "other"])
def test_predictions_that_are_not_those_of_the_record_are_refused(
    home: Home, inside: Callable[..., list[Path]], damage: str
) -> None:
    path = min((home.results / ".predictions").glob("*.npz"))
    restore = put_back(path)
    with np.load(path) as kept:
        arrays = dict(kept)
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "short":
        np.savez(path, **{**arrays, "validation": arrays["validation"][1:]})
    else:
        np.savez(path, **{**arrays, "test": 1 - arrays["test"]})
    expected = {"missing": "is missing", "torn": "cannot be read", "short": "of validation", "other": "the record says"}
    try:
        with pytest.raises(UsageError, match=expected[damage]) as caught:
            inside()
    finally:
        restore()
    assert str(path) in str(caught.value)
    assert "Run it again: `selfbench run -t small-wilds-camelyon17" in str(caught.value)
    assert not (home.root / "again").exists()


def test_a_missing_replicate_is_named_with_its_command(home: Home, inside: Callable[..., list[Path]]) -> None:
    [path] = [
        path
        for path in (home.results / TASK / "supervised").glob("*.json")
        if json.loads(path.read_text())["spec"]["seed"] == 1
    ]
    restore = put_back(path)
    path.unlink()
    try:
        with pytest.raises(UsageError, match="missing are 1: type `selfbench run -t small-wilds-camelyon17 -m superv"):
            inside()
    finally:
        restore()


def test_what_cannot_be_submitted_is_refused(home: Home, inside: Callable[..., list[Path]]) -> None:
    with pytest.raises(UsageError, match="no finished run 'abc' of supervised"):
        inside("abc")
    with pytest.raises(UsageError, match="has no public leaderboard"):
        inside(task="digits-semi")
    done = home.call("export", "wilds", "-t", "digits-semi", "-m", "supervised")
    assert done.returncode == 2
    assert "not one of WILDS, which are: small-wilds-camelyon17, wilds-amazon" in done.stderr
