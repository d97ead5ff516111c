"""A suite is resolved to the specs of its runs, or the error names the file, the key and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.errors import UsageError
from selfbench.suite.spec import canonical
from selfbench.suite.suites import Settings, expand, load_suite, make_spec, read_suite, suite_names

HEAD = 'name = "mine"\nseeds = [0, 1]\n'
PAIR = '[[pairs]]\ntasks = ["toy-stream"]\nmethods = ["source", "norm"]\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def call(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return call


def test_every_suite_of_the_package_resolves() -> None:
    assert "quick" in suite_names()
    for name in suite_names():
        suite = load_suite(name)
        assert suite.name == name
        assert suite.title
        assert suite.description
        assert len({spec.run_id for spec in suite.specs}) == len(suite.specs) > 0
        for spec in suite.specs:
            assert spec.task.version == registry.get("task", spec.task.name).version
            assert spec.seed in suite.seeds


def test_quick_has_three_seeds_and_a_baseline_on_every_task() -> None:
    suite = load_suite("quick")
    assert len(suite.seeds) >= 3
    by_task: dict[str, set[str]] = {}
    for spec in suite.specs:
        by_task.setdefault(spec.task.name, set()).add(spec.method.name)
    for methods in by_task.values():
        assert methods & {"source", "supervised", "erm", "sft"}
        assert len(methods) >= 3


def test_runs_are_ordered_by_task_seed_and_method_as_listed(write) -> None:
    suite = load_suite(write(HEAD + PAIR))
    assert [(spec.seed, spec.method.name) for spec in suite.specs] == [
        (0, "source"), (0, "norm"), (1, "source"), (1, "norm"),
    ]  # fmt: skip
    assert {spec.budget.limit for spec in suite.specs} == {10000.0}


def test_settings_are_part_of_every_run(write) -> None:
    path = write(HEAD + PAIR)
    other = load_suite(path, Settings("cuda", "bf16", 4))
    assert {(spec.device, spec.precision, spec.threads) for spec in other.specs} == {("cuda", "bf16", 4)}
    assert not {spec.run_id for spec in other.specs} & {spec.run_id for spec in load_suite(path).specs}


def test_a_run_that_two_pairs_name_is_one_run(write) -> None:
    assert len(load_suite(write(HEAD + PAIR + PAIR)).specs) == 4


def test_a_pair_may_change_hyper_parameters_budget_and_selection(write) -> None:
    path = write(
        HEAD
        + '[[pairs]]\ntasks = ["toy-adaptation"]\n'
        + 'methods = ["fixmatch", { name = "fixmatch", params = { threshold = 0.5 } }]\n'
        + 'budget = { limit = 77, wall_seconds = 5 }\nselection = "oracle"\n'
    )
    standard, changed, *_ = load_suite(path).specs
    assert standard.method.params["threshold"] != 0.5
    assert changed.method.params == standard.method.params | {"threshold": 0.5}
    assert (changed.budget.limit, changed.budget.wall_seconds, changed.budget.memory_mb) == (77, 5, 2048)
    assert changed.selection == "oracle"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "is not valid TOML"),
        ("\xff", "is not valid TOML"),
        (PAIR, "'seeds' must be a list of integers from 0, such as"),
        ("seeds = []\n" + PAIR, "'seeds' must be a list"),
        ("seeds = 3\n" + PAIR, "'seeds' must be a list"),
        ("seeds = [-1]\n" + PAIR, "'seeds' must be a list"),
        ("seeds = [0.5]\n" + PAIR, "'seeds' must be a list"),
        ("seeds = [true]\n" + PAIR, "'seeds' must be a list"),
        ("seeds = [0, 100]\n" + PAIR, "seed 100 belongs to tuning"),
        ("seeds = [0, 1, 0]\n" + PAIR, "'seeds' names one seed twice"),
        (HEAD, r"there is no \[\[pairs\]\] table"),
        (HEAD + "pairs = []", r"there is no \[\[pairs\]\] table"),
        (HEAD + 'pairs = ["tent"]', "pairs 1: expected a table, got 'tent'"),
        (HEAD + "sedes = [1]\n" + PAIR, r"unknown key 'sedes'\. Did you mean 'seeds'\?"),
        (HEAD + PAIR + "task = 1", r"pairs 1: unknown key 'task'\. Did you mean 'tasks'\?"),
        (HEAD + '[[pairs]]\ntasks = ["toy-stream"]', "pairs 1: 'methods' must be a list of names"),
        (HEAD + '[[pairs]]\ntasks = "toy-stream"\nmethods = ["tent"]', "pairs 1: 'tasks' must be a list of names"),
        (HEAD + '[[pairs]]\ntasks = []\nmethods = ["tent"]', "'tasks' must be a list"),
        (HEAD + '[[pairs]]\ntasks = [1]\nmethods = ["tent"]', "no task '1'"),
        (HEAD + PAIR.replace("toy-stream", "toy-steam"), r"no task 'toy-steam'\. Did you mean 'toy-stream'\?"),
        (HEAD + PAIR.replace('"norm"', '"nrom"'), r"no method 'nrom'\. Did you mean 'norm'\?"),
        (HEAD + PAIR.replace('"norm"', '"fixmatch"'), "pairs 1: method 'fixmatch' follows the protocol adaptation"),
        (HEAD + PAIR.replace('"norm"', "3"), "a method is a name or a table with 'name' and 'params', got 3"),
        (HEAD + PAIR.replace('"norm"', '{ params = { lr = 1 } }'), "a method is a name or a table"),
        (HEAD + PAIR.replace('"norm"', '{ name = "tent", parms = {} }'), r"unknown key 'parms'\. Did you mean"),
        (HEAD + PAIR.replace('"norm"', '{ name = "tent", params = 3 }'), "'params' must be a table"),
        (HEAD + PAIR.replace('"norm"', '{ name = "tent", params = { lrr = 1 } }'), r"no hyper-parameter 'lrr'.*'lr'\?"),
        (HEAD + PAIR.replace('"norm"', '{ name = "tent", params = { lr = 1e9 } }'), "'lr' must lie in"),
        (HEAD + PAIR.replace('"norm"', '{ name = "tent", params = { lr = [1] } }'), "'lr' must be float"),
        (HEAD + PAIR + 'selection = "best"', "pairs 1: there is no selection rule 'best'.*last, validation, .*oracle"),
        (HEAD + PAIR + 'selection = "oracle"', "pairs 1: a stream has .* nothing to select"),
        (HEAD + PAIR + "selection = 3", "there is no selection rule '3'"),
        (HEAD + PAIR + "budget = 3", "'budget' must be a table"),
        (HEAD + PAIR + "budget = { limits = 3 }", "pairs 1: limits"),
        (HEAD + PAIR + "budget = { limit = 0 }", "pairs 1: limit: .*greater than 0.*got 0"),
        (HEAD + PAIR + "budget = { limit = -5 }", "pairs 1: limit: "),
        (HEAD + PAIR + 'budget = { limit = "much" }', "pairs 1: limit: "),
        (HEAD + PAIR + "budget = { limit = nan }", "pairs 1: limit: "),
        (HEAD + PAIR + 'budget = { currency = "euros" }', "pairs 1: currency: "),
        (HEAD + PAIR + "budget = { memory_mb = 1 }", "pairs 1: memory_mb: "),
    ],
)  # fmt: skip
def test_a_suite_amiss_is_explained(write, text: str, says: str) -> None:
    path = write(text)
    if text == "\xff":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=says):
        load_suite(path)


@pytest.mark.parametrize("name", ["quikc", "nowhere/mine.toml", "."])
def test_a_suite_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=r"There is no suite.* The suites are: .*quick.*or give the path"):
        load_suite(name)


def test_the_nearest_suite_is_proposed() -> None:
    with pytest.raises(UsageError, match=r"There is no suite 'quikc'\. Did you mean 'quick'\?"):
        read_suite("quikc")


def test_a_folder_is_no_suite(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"folder\.toml"):
        load_suite(tmp_path / "folder.toml")


def test_a_need_that_is_not_granted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = registry.get("task", "toy-stream").file.read_text()
    bare = source.replace("toy-", "bare-").replace('grants=("norm-layers", "batch-norm"),', "")
    (tmp_path / "bare.py").write_text(bare)
    monkeypatch.setenv("SELFBENCH_PATH", str(tmp_path))
    with pytest.raises(
        UsageError, match=r"run: method 'tent' needs \S+, which task 'bare-stream' does not grant\. It runs on "
    ):
        expand(tasks=["bare-stream"], methods=["source", "tent"], seeds=[0])
    assert len(expand(tasks=["bare-stream"], methods=["source"], seeds=[0])) == 1


def test_a_hyper_parameter_that_was_added_leaves_earlier_runs_what_they_were(write) -> None:
    """Where it has its default it is no part of the spec; where it has another value, by hand or by a preset, it is."""
    entry = registry.get("method", "fixmatch")
    assert entry.added == {"augment": "weak"}
    assert entry.params()["augment"] == "weak"
    [usual] = expand(tasks=["toy-adaptation"], methods=["fixmatch"], seeds=[0])
    assert usual.method.params.keys() == {"lr_scale", "threshold", "weight", "ratio"}
    [given] = expand(tasks=["toy-adaptation"], methods=[{"name": "fixmatch", "params": {"augment": "weak"}}], seeds=[0])
    assert given.run_id == usual.run_id
    [other] = expand(
        tasks=["toy-adaptation"], methods=[{"name": "fixmatch", "params": {"augment": "strong"}}], seeds=[0]
    )
    assert other.method.params == usual.method.params | {"augment": "strong"}
    [preset] = expand(tasks=["wilds-fmow"], methods=["fixmatch"], seeds=[0])
    assert preset.method.params["augment"] == "strong"
    label = Catalogue.registered().label
    assert label("fixmatch", "1", canonical(usual.method.params).decode()) == "fixmatch"
    assert label("fixmatch", "1", canonical(other.method.params).decode()) == "fixmatch[augment=strong]"


def test_a_policy_has_no_score_to_choose_a_round_by() -> None:
    """But that of its test, for the upper bound."""
    task, method = registry.get("task", "arithmetic-tiny"), registry.get("method", "sft")
    for rule in ("validation", "entropy"):
        with pytest.raises(UsageError, match=f"selection '{rule}' takes none of these; type --selection last"):
            make_spec(task, method, {}, 0, selection=rule)
    assert make_spec(task, method, {}, 0, selection="oracle").selection == "oracle"


def test_outputs_other_than_classes_have_no_label_free_scores() -> None:
    """What is refused where a run is planned is what the tasks themselves say."""
    for task in registry.entries("task").values():
        if task.protocol == "adaptation":
            assert (task.options["outputs"] == "classes") == task.load().label_free, task.name
