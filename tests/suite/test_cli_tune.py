"""`selfbench tune`: what is typed, what is shown, what stays hidden, and that nothing of it reaches a board."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.board.choose import load_suites
from selfbench.suite.board.scores import score_field
from selfbench.suite.board.suites import score_suite
from selfbench.suite.board.table import fields_of
from selfbench.suite.store import Store
from selfbench.suite.suites import load_suite

TUNE = ("tune", "-t", "toy-adaptation", "--selection", "validation", "--budget", "limit=3000", "--device", "cpu")
SUITE = """
name = "mine"
seeds = [0, 1, 2]

[[pairs]]
tasks = ["toy-adaptation"]
methods = ["supervised", "fixmatch"]
selection = "validation"
budget = { limit = 3000 }
"""


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("results/toy-adaptation/*/*.json")}


def recorded(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as a spec has them: one that was added later, `augment`, is left out at its default."""
    return {name: value for name, value in sorted(params.items()) if (name, value) != ("augment", "weak")}


def test_a_search_is_completed_extended_and_shown(cli, tmp_path: Path) -> None:
    pair = ("-m", "pseudo-label", "-m", "fixmatch", "-p", "lr_scale=1")
    fresh = cli(*TUNE, *pair, "-n", "3", "--no-run")
    assert fresh.code == 0
    assert "no winner yet, 3 runs are missing" in fresh.out
    assert not files(tmp_path)

    assert cli(*TUNE, "-m", "pseudo-label", "-n", "2", "-p", "lr_scale=1").code == 0
    one_method = files(tmp_path)
    assert len(one_method) == 2
    ran = cli(*TUNE, *pair, "-n", "3")
    assert ran.code == 0, ran.err
    assert "6 runs, 4 to do" in ran.err, "more draws and another method keep the draws that are there"
    before = files(tmp_path)
    assert one_method.items() <= before.items()
    assert ran.out.count("tuned with 3 draws on seed 100 by rule validation") == 2
    assert ran.out.count("winner") == 2
    assert "error" not in (ran.out + ran.err).replace("validation error", ""), "the test error is not shown"

    gone = next(iter(set(before) - set(one_method)))
    gone.unlink()
    again = cli(*TUNE, *pair, "-n", "3", "--json")
    assert "6 runs, 1 to do" in again.err
    assert set(files(tmp_path)) == set(before)
    shown = json.loads(again.out)
    assert [item["method"] for item in shown] == ["pseudo-label", "fixmatch"]
    for item in shown:
        assert item["tuned"] == "tuned with 3 draws on seed 100 by rule validation"
        assert [draw["draw"] for draw in item["draws"]] == [0, 1, 2]
        best = item["winner"]
        assert best["score"] == min(draw["score"] for draw in item["draws"])
        assert best["params"] == item["draws"][best["draw"]]["params"]
        assert tomllib.loads(best["toml"])["pairs"][0]["methods"][0]["params"] == best["params"]
        for draw in item["draws"]:
            [run] = draw["runs"]
            [path] = tmp_path.glob(f"results/toy-adaptation/{item['method']}/{run['run_id']}.json")
            record = json.loads(path.read_text())
            assert record["spec"]["seed"] == run["seed"] == 100
            assert record["spec"]["method"]["params"] == recorded(draw["params"])
            here = [point for point in record["curve"] if point["x"] == record["diagnostics"]["selected_at"]]
            assert run["score"] == draw["score"] == min(point["values"]["validation"] for point in here)
    assert '"test"' not in again.out

    complete = cli(*TUNE, *pair, "-n", "3", "--no-run", "--test", "--json")
    for item in json.loads(complete.out):
        best = item["winner"]
        [path] = tmp_path.glob(f"results/*/*/{item['draws'][best['draw']]['runs'][0]['run_id']}.json")
        assert best["test"] == {"error": {"100": json.loads(path.read_text())["metrics"]["error"]}}

    # The printed command runs the winner on seeds of suites.
    words = shlex.split(shown[1]["winner"]["command"])
    assert words[:2] == ["selfbench", "run"]
    assert "0-2" in words
    assert cli(*words[1:]).code == 0
    seeds = {
        json.loads(raw)["spec"]["seed"]
        for raw in files(tmp_path).values()
        if json.loads(raw)["spec"]["method"]["params"] == recorded(shown[1]["winner"]["params"])
    }
    assert seeds == {0, 1, 2, 100}


def test_draws_that_fail_are_shown_and_may_be_run_again(cli, tmp_path: Path) -> None:
    hurried = ("-m", "supervised", "-n", "1", "--budget", "wall_seconds=0.01")
    failed = cli(*TUNE, *hurried)
    assert failed.code == 1
    assert "timeout: stopped at the hard limit" in failed.out
    assert "no winner, no draw finished well" in failed.out
    [(path, kept)] = files(tmp_path).items()
    assert cli(*TUNE, *hurried).code == 1
    assert path.read_bytes() == kept
    again = cli(*TUNE, *hurried, "--retry-failed")
    assert again.code == 1
    assert json.loads(path.read_text())["provenance"]["attempt"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "toy-adaptation", "-m", "fixmatch"], "The rule 'last' takes a point by its place"),
        (["-t", "toy-adaptation", "-m", "fixmatch", "--selection", "oracle"], "reads test labels"),
        (["-t", "toy-adaptation", "-m", "fixmatch", "--selection", "validation", "-s", "0-100"], "Seeds below 100"),
        (["-t", "toy-adaptation", "-m", "fixmatch", "--selection", "validation", "-p", "rato=1"], "'ratio'"),
        (["-t", "toy-stream", "-m", "tent"], "all its labels are test labels"),
        (["-t", "toy-adaptation"], "Say what to tune"),
    ],
)
def test_wrong_usage_is_explained(cli, words: list[str], says: str) -> None:
    called = cli("tune", *words)
    assert called.code == 2, called.err
    assert says in called.err


def test_no_run_of_a_search_reaches_a_board(cli, campaign, tmp_path: Path) -> None:
    options = {"budget": {"limit": 3000}, "selection": "validation"}
    campaign("toy-adaptation", "supervised", "fixmatch", seeds=(0, 1, 2), **options)
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    with Store(tmp_path / "results").index() as index:
        alone = index.summaries()
    before = cli("board", "--suite", path, "--json").out, cli("board", "-t", "toy-adaptation", "--json").out
    assert cli(*TUNE, "-m", "supervised", "-m", "fixmatch", "-n", "2").code == 0
    loose = cli("board", "-t", "toy-adaptation", "--json")
    assert (cli("board", "--suite", path, "--json").out, loose.out) == before
    assert "4 runs of tuning (seeds from 100) are not ranked" in loose.err

    # The same below the command line, and that the test could fail: without the rule of seeds the rows would mix.
    catalogue = Catalogue.registered()
    with Store(tmp_path / "results").index() as index:
        runs = index.summaries()
    assert len(runs) == len(alone) + 4
    [suite] = load_suites([path], runs)
    assert {spec.seed for spec in suite.specs} == set(load_suite(path).seeds) == {0, 1, 2}
    assert score_suite(suite, runs, catalogue).tasks[0].field == score_suite(suite, alone, catalogue).tasks[0].field
    [mixed] = [score_field(field, catalogue) for field in fields_of(runs, catalogue)]
    assert {100} < set(mixed.field.seeds)
