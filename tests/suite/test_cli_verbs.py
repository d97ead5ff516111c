"""The command line: what a user types, what comes back, and with which exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfbench.suite import record as records
from selfbench.suite.cli.select import gather, parse_seeds
from selfbench.suite.command import parse_assignments, repeat_command
from selfbench.suite.errors import UsageError
from selfbench.suite.suites import Settings, expand

VERBS = ["list", "info", "plan", "run", "status", "retry", "tune", "board", "check", "validate", "doctor"]
GROUPS = ["data list", "data path", "data fetch", "data verify", "new method", "new task", "site build", "site serve"]
TOY = ("-t", "toy-stream")


@pytest.mark.parametrize("verb", [*VERBS, *GROUPS])
def test_every_verb_has_a_worked_example(cli, verb: str) -> None:
    called = cli(*verb.split(), "--help")
    assert called.code == 0
    assert f"selfbench {verb.split()[0]}" in called.out.split("Examples")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["info", "tnet"], "Did you mean 'tent'?"),
        (["list", "method"], "Did you mean 'methods'?"),
        (["run", *TOY, "-m", "sorce"], "Did you mean 'source'?"),
        (["run", "-t", "toy-strem", "-m", "source"], "Did you mean 'toy-stream'?"),
        (["run", "--suite", "quik"], "Did you mean 'quick'?"),
        (["run"], "--suite NAME, or -t TASK -m METHOD"),
        (["run", *TOY, "-m", "supervised"], "follows the protocol adaptation"),
        (["run", *TOY, "-m", "tent", "-p", "lrr=1"], "Did you mean 'lr'?"),
        (["run", *TOY, "-m", "tent", "-p", "lr=7"], "must lie in [1e-06, 0.1]"),
        (["run", *TOY, "-m", "tent", "-p", "lr"], "NAME=VALUE"),
        (["run", *TOY, "-m", "tent", "-s", "a"], "Seeds are numbers"),
        (["run", *TOY, "-m", "tent", "--budget", "limit=0"], "limit"),
        (["run", *TOY, "-m", "tent", "--budget", "limit=-5"], "limit"),
        (["run", *TOY, "-m", "tent", "--budget", "lmit=5"], "lmit"),
        (["run", *TOY, "-m", "tent", "--budget", "currency=euro"], "currency"),
        (["run", *TOY, "-m", "tent", "--selection", "bets"], "selection rule"),
        (["check", "tetn"], "Did you mean 'tent'?"),
        (["board", "--results", "nowhere"], "no results folder"),
        (["new", "method", "Bad Name"], "lower case"),
        (["new", "method", "tent"], "already"),
        (["new", "task", "mine", "--protocol", "policy"], "no scaffold"),
    ],
)
def test_wrong_usage_is_explained_with_exit_code_2(cli, words: list[str], says: str) -> None:
    called = cli(*words)
    assert called.code == 2, called.err
    assert says in called.err
    assert "Traceback" not in called.err


def test_a_malformed_suite_file_is_explained(cli, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("seeds = [0\n")
    called = cli("run", "--suite", "bad.toml")
    assert called.code == 2
    assert "bad.toml is not valid TOML" in called.err


@pytest.mark.parametrize(
    "words",
    [
        ["list", "methods"],
        ["list", "tasks"],
        ["list", "suites"],
        ["info", "tent"],
        ["plan", *TOY, "-m", "tent"],
        ["status", *TOY, "-m", "tent"],
        ["data", "list"],
    ],
)
def test_json_is_json(cli, words: list[str]) -> None:
    called = cli(*words, "--json")
    assert called.code == 0, called.err
    assert json.loads(called.out)


def test_a_plan_tells_what_is_fetched_from_what_is_put_by_hand(cli, tmp_path: Path) -> None:
    """What no command fetches is not called so: it has a size, a place, and words about where to get it."""
    words = ["plan", "-t", "pacs-continual", "-t", "ccc-medium", "-m", "source", "-s", "0"]
    called = cli(*words, SELFBENCH_DATA=str(tmp_path / "none"))
    assert called.code == 0, called.err
    lines = {line.split()[2]: line for line in called.out.splitlines() if line.startswith("first: ")}
    folder = tmp_path / "none"
    assert lines["pacs"].startswith(f"first: put pacs by hand (174 MB) into {folder / 'pacs'}: PACS.zip from the")
    assert lines["ccc"].startswith(f"first: put ccc by hand (30000 MB) into {folder / 'ccc'}: The shards https://")
    assert lines["imagenet"].startswith(f"first: put imagenet by hand (6745 MB) into {folder / 'imagenet'}: ")
    assert "after registration" in lines["imagenet"]
    assert lines["torchvision-models"] == "first: fetch torchvision-models (149 MB)"
    needs = json.loads(cli(*words, "--json", SELFBENCH_DATA=str(tmp_path / "none")).out)["needs"]
    assert {"kind": "put", "name": "pacs", "size": 174_000_000} in [
        {key: need[key] for key in ("kind", "name", "size")} for need in needs
    ]


def test_a_campaign_from_plan_to_board(cli, tmp_path: Path) -> None:
    matrix = [*TOY, "-m", "source", "-m", "raises", "-s", "0,1"]
    planned = cli("plan", *matrix)
    assert "4 runs, 4 to do" in planned.out
    ran = cli("run", *matrix)
    assert ran.code == 1, ran.err
    assert "2 runs well, 2 failed" in ran.err
    status = cli("status", *matrix)
    assert "2 failed, 2 ok" in status.out
    assert "the fourth batch is unlucky" in status.out
    again = cli("run", *matrix)
    assert again.code == 1
    assert "selfbench retry" in again.err
    assert cli("run", *TOY, "-m", "source", "-s", "0,1").code == 0
    retried = cli("retry", *matrix)
    assert retried.code == 1
    [path] = [item for item in tmp_path.glob("results/toy-stream/raises/*.json") if '"seed": 0' in item.read_text()]
    assert records.decode(path.read_bytes()).provenance.attempt == 2
    shown = cli("board", "-t", "toy-stream")
    assert shown.code == 0
    assert "source" in shown.out
    assert cli("validate").out.startswith("4 valid records, 0 broken")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    broken = cli("validate")
    assert broken.code == 1
    assert "does not match its digest" in broken.out
    healed = cli("run", *TOY, "-m", "raises", "-s", "0")
    assert healed.code == 1
    assert cli("validate").code == 0


def test_interrupting_keeps_what_is_finished(tmp_path: Path) -> None:
    words = ["run", *TOY, "-m", "source", "-m", "norm", "-m", "tent", "-s", "0-9", "-j", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfbench.suite", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("results/toy-stream/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command completes the rest" in err
    kept = {path: path.read_bytes() for path in tmp_path.glob("results/toy-stream/*/*.json")}
    assert 0 < len(kept) < 30
    done = subprocess.run([sys.executable, "-m", "selfbench.suite", *words], cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 0
    after = {path: path.read_bytes() for path in tmp_path.glob("results/toy-stream/*/*.json")}
    assert len(after) == 30
    assert kept.items() <= after.items()


@pytest.mark.parametrize(
    ("method", "params", "options"),
    [
        ("tent", {}, {}),
        ("tent", {"lr": 0.003, "optimizer": "sgd"}, {"budget": {"limit": 5000, "wall_seconds": 7}}),
        ("norm", {"source_weight": 0.5}, {"settings": Settings("cpu", "bf16", 2)}),
        ("fixmatch", {"threshold": 0.5}, {"selection": "validation"}),
        ("fixmatch", {"augment": "strong"}, {}),
    ],
)
def test_the_command_of_a_record_repeats_its_run(method: str, params: dict, options: dict) -> None:
    task = "toy-adaptation" if method == "fixmatch" else "toy-stream"
    [spec] = expand(tasks=[task], methods=[{"name": method, "params": params}], seeds=[3], **options)
    words = shlex.split(repeat_command(spec))
    assert words[:2] == ["selfbench", "run"]
    given: dict[str, list[str]] = {}
    for option, value in zip(words[2::2], words[3::2], strict=True):
        given.setdefault(option, []).append(value)
    [again] = gather(
        None, given["-t"], given["-m"], given["-s"][0], params=given.get("-p"), budget=given.get("--budget"),
        selection=given.get("--selection", [None])[0], device=given["--device"][0],
        precision=given.get("--precision", ["fp32"])[0], threads=int(given.get("--threads", ["1"])[0]),
    )  # fmt: skip
    assert again.run_id == spec.run_id


def test_the_command_of_a_run_that_leaves_a_preset_alone_says_so() -> None:
    """`augment` was added and is "strong" in the preset of the task; at its default no spec names it."""
    [spec] = expand(tasks=["wilds-fmow"], methods=[{"name": "fixmatch", "params": {"augment": "weak"}}], seeds=[0])
    assert "augment" not in spec.method.params
    words = shlex.split(repeat_command(spec))
    assert words[words.index("-p") + 1] == "augment=weak"


def test_seeds_and_assignments() -> None:
    assert parse_seeds("0") == [0]
    assert parse_seeds("3,1,1-4") == [3, 1, 2, 4]
    assert parse_assignments(["a=1", "b=1e-3", "c=x=y", "d=true"], "-p") == {"a": 1, "b": 1e-3, "c": "x=y", "d": True}
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_assignments(["=1"], "-p")


@pytest.mark.parametrize(
    ("kind", "protocol", "partner"),
    [
        ("method", "stream", "toy-stream"),
        ("method", "adaptation", "toy-adaptation"),
        ("method", "policy", "arithmetic-tiny"),
        ("task", "stream", "tent"),
        ("task", "adaptation", "supervised"),
    ],
)
def test_a_scaffold_runs_as_it_is_written(cli, tmp_path: Path, kind: str, protocol: str, partner: str) -> None:
    made = cli("new", kind, f"my-{kind}", "--protocol", protocol)
    assert made.code == 0, made.err
    assert "selfbench check" in made.out
    path = os.pathsep.join([os.environ["SELFBENCH_PATH"], str(tmp_path / f"my_{kind}.py")])
    limits = {"adaptation": 20_000, "policy": 200_000}
    budget = ["--budget", f"limit={limits[protocol]}"] if protocol in limits else []
    checked = cli("check", f"my-{kind}", "--with", partner, *budget, SELFBENCH_PATH=path)
    assert checked.code == 0, checked.out + checked.err
    assert checked.out.count("ok  ") == 6
    assert cli("new", kind, f"my-{kind}").code == 2


def test_check_reports_a_method_that_fails(cli) -> None:
    called = cli("check", "raises", "--with", "toy-stream")
    assert called.code == 1
    assert "BAD  runs" in called.out


def test_doctor_finds_this_machine_ready(cli) -> None:
    called = cli("doctor")
    assert called.code == 0, called.out
    assert "BAD" not in called.out
