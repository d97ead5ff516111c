"""Draws, and the choice among them."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry, tuning
from selfbench.suite.errors import UsageError
from selfbench.suite.needs import NEEDS, OUTPUTS
from selfbench.suite.record import Record
from selfbench.suite.registry import RegistryError
from selfbench.suite.registry.entry import Hyper
from selfbench.suite.seed_ranges import fold_of
from selfbench.suite.suites import load_suite, make_spec

ALL = (*NEEDS, *OUTPUTS)
"""What a task would offer that had everything."""
METHODS = ["fixmatch", "mean-teacher", "pseudo-label", "supervised"]


def values(item: Hyper, n: int = 2000) -> list:
    generator = np.random.default_rng(0)
    return [tuning.draw_value(item, generator) for _ in range(n)]


def search(method: str = "fixmatch", task: str = "toy-adaptation", **changes) -> tuning.Search:
    arguments = {"draws": 4, "seeds": [100], "rule": tuning.tuning_rule("validation")} | changes
    return tuning.plan_search(registry.get("task", task), registry.get("method", method), **arguments)


def record(spec, status: str = "ok", **scores: list[float]) -> Record:
    """A record of `spec` whose curve has these scores by name; the test error runs against the validation error."""
    length = len(next(iter(scores.values()), []))
    curve = [
        {"x": float(at), "values": {name: line[at] for name, line in scores.items()}} for at in range(length)
    ]  # fmt: skip
    hashes = dict.fromkeys(("method_sha256", "task_sha256", "bundle_sha256"), "0" * 64)
    words = dict.fromkeys(("created", "selfbench", "python", "platform", "processor", "command"), "-")
    return Record(
        run_id=spec.run_id, spec=spec, status=status, primary="error", curve=curve,
        provenance={**hashes, **words, "packages": {}},
    )  # fmt: skip


def test_floats_fill_their_range_evenly() -> None:
    drawn = values(Hyper("x", 0.5, low=0.2, high=0.7))
    assert all(0.2 <= value <= 0.7 and value == float(f"{value:.4g}") for value in drawn)
    shares = np.histogram(drawn, bins=5, range=(0.2, 0.7))[0] / len(drawn)
    assert np.abs(shares - 0.2).max() < 0.04


def test_on_a_log_scale_every_decade_gets_its_share() -> None:
    drawn = values(Hyper("x", 1e-3, low=1e-5, high=1e-1, log=True))
    shares = np.histogram(np.log10(drawn), bins=4, range=(-5, -1))[0] / len(drawn)
    assert np.abs(shares - 0.25).max() < 0.04


def test_integers_reach_both_ends_and_stay_integers() -> None:
    drawn = values(Hyper("x", 2, low=1, high=4))
    assert {type(value) for value in drawn} == {int}
    shares = np.bincount(drawn, minlength=5)[1:] / len(drawn)
    assert np.abs(shares - 0.25).max() < 0.04


def test_integers_on_a_log_scale() -> None:
    drawn = values(Hyper("x", 2, low=1, high=7, log=True))
    assert {type(value) for value in drawn} == {int}
    expected = np.array([math.log((k + 1) / k) / math.log(8) for k in range(1, 8)])
    assert np.abs(np.bincount(drawn, minlength=8)[1:] / len(drawn) - expected).max() < 0.04


def test_booleans_and_choices_are_drawn_and_the_rest_is_left() -> None:
    assert 0.45 < np.mean(values(Hyper("x", default=True))) < 0.55
    assert {type(value) for value in values(Hyper("x", default=False), 10)} == {bool}
    drawn = values(Hyper("x", "b", choices=("a", "b", "c")))
    assert all(0.29 < drawn.count(word) / len(drawn) < 0.38 for word in "abc")
    for item in (Hyper("x", 3.0), Hyper("x", 3.0, low=0.0), Hyper("x", 3, high=9), Hyper("x", "word")):
        assert not tuning.has_range(item)
        assert set(values(item, 10)) == {item.default}


def test_a_log_range_from_zero_is_refused() -> None:
    with pytest.raises(RegistryError, match="'x' is drawn on a log scale"):
        values(Hyper("x", 0.5, low=0.0, high=1.0, log=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_draw_is_within_the_bounds(name: str) -> None:
    method = registry.get("method", name)
    for number in range(50):
        drawn = tuning.draw_params(method, number, 7, {}, "", ALL)
        assert method.params(drawn) == drawn


@pytest.mark.parametrize("name", sorted(registry.entries("method")))
def test_the_ranges_of_every_registered_method_can_be_drawn(name: str) -> None:
    method = registry.get("method", name)
    drawn = tuning.draw_params(method, 1, 0, {}, "", ALL)
    assert method.params(drawn) == drawn


def test_draw_zero_is_the_standard_one_with_the_preset_of_the_task() -> None:
    method = registry.get("method", "fixmatch")
    assert tuning.draw_params(method, 0, 0, {}, "", ALL) == method.params()
    assert tuning.draw_params(method, 0, 0, {}, "imagenet", ALL) == method.params(preset="imagenet")
    assert tuning.draw_params(method, 0, 0, {"weight": 0.5}, "imagenet", ALL)["weight"] == 0.5


def test_more_draws_and_other_methods_change_nothing_drawn_before() -> None:
    few, many = search(draws=3), search(draws=6)
    assert [draw.specs for draw in few.draws] == [draw.specs for draw in many.draws[:3]]
    assert len({spec.run_id for draw in many.draws for spec in draw.specs}) == 6
    other_seed, other_method = search(search_seed=1), search("pseudo-label")
    for draw in few.draws[1:]:
        assert draw.params["lr_scale"] != other_seed.draws[draw.number].params["lr_scale"]
        assert draw.params["lr_scale"] != other_method.draws[draw.number].params["lr_scale"]


def test_a_new_hyper_parameter_changes_no_other_one() -> None:
    method = registry.get("method", "fixmatch")
    fewer = registry.Entry(**{**method.__dict__, "hypers": method.hypers[1:]})
    drawn = tuning.draw_params(method, 3, 0, {}, "", ALL)
    assert tuning.draw_params(fewer, 3, 0, {}, "", ALL) == {item.name: drawn[item.name] for item in fewer.hypers}


@pytest.mark.parametrize("method", ["supervised", "pseudo-label"])
def test_a_strong_view_is_drawn_where_the_task_has_one_alone(method: str) -> None:
    task = registry.get("task", "gaussian-shift-d20-n1000")
    options = {"draws": 12, "seeds": [100], "rule": tuning.tuning_rule("validation")}
    assert "strong" in {draw.params["augment"] for draw in search(method, draws=12).draws}
    planned = tuning.plan_search(task, registry.get("method", method), **options)
    assert "strong" not in {draw.params["augment"] for draw in planned.draws}


def test_what_is_held_fixed_is_not_drawn() -> None:
    planned = search(fixed={"ratio": 2, "weight": 0.5})
    assert planned.drawn == ("lr_scale", "threshold", "augment")
    assert {(draw.params["ratio"], draw.params["weight"]) for draw in planned.draws} == {(2, 0.5)}
    assert [draw.params["threshold"] for draw in planned.draws] == [
        draw.params["threshold"] for draw in search().draws
    ]  # fmt: skip


def test_runs_come_draw_by_draw_and_equal_ones_once() -> None:
    searches = [search("supervised", seeds=[100, 101]), search("fixmatch", seeds=[100, 101])]
    runs = tuning.runs_of(searches)
    assert [(spec.method.name, spec.seed) for spec in runs[:5]] == [
        ("supervised", 100), ("supervised", 101), ("fixmatch", 100), ("fixmatch", 101), ("supervised", 100),
    ]  # fmt: skip
    assert len(runs) == 16
    alike = search("supervised", fixed={"lr_scale": 1.0, "augment": "weak"})
    assert len(tuning.runs_of([alike])) == 1


def test_equal_budgets() -> None:
    runs = tuning.runs_of([search("supervised", budget={"limit": 77}), search("fixmatch", budget={"limit": 77})])
    assert {spec.budget.limit for spec in runs} == {77}


@pytest.mark.parametrize("name", ["validation", "source-validation", "entropy", "transfer-score"])
def test_rules_that_have_a_score_can_choose(name: str) -> None:
    assert tuning.tuning_rule(name).name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("last", "by its place and not by a score"),
        ("oracle", "reads test labels"),
        ("validaton", "Did you mean 'validation'"),
    ],
)
def test_rules_that_cannot_choose_are_refused(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        tuning.tuning_rule(name)
    assert "--selection: validation, source-validation, entropy, transfer-score" in str(raised.value)


def test_pairs_that_cannot_be_tuned_say_why() -> None:
    rule = tuning.tuning_rule("validation")
    with pytest.raises(UsageError, match="all its labels are test labels"):
        tuning.plan_search(
            registry.get("task", "toy-stream"), registry.get("method", "tent"), draws=1, seeds=[100], rule=rule
        )
    with pytest.raises(UsageError, match="follows the protocol stream"):
        search("tent")


@pytest.mark.parametrize(
    ("task", "method", "name", "drawn"),
    [
        ("sentiment-domains", "mutual-mean-teacher", "wave", {1.0}),
        ("imdb-10-finetune", "robust-ssl", "inner", {0}),
        ("wilds-poverty", "noisy-student", "labels", {"hard"}),
        ("wilds-camelyon17", "noisy-student", "labels", {"hard", "soft"}),
        ("wilds-rxrx1", "supervised", "augment", {"none", "weak"}),
    ],
)
def test_what_a_task_cannot_give_is_not_drawn(task: str, method: str, name: str, drawn: set) -> None:
    planned = search(method, draws=30, task=task)
    assert {draw.params[name] for draw in planned.draws[1:]} == drawn
    kept = planned.draws[0].params[name]
    assert (name in planned.drawn) == (drawn != {kept} or isinstance(kept, str))


def test_what_a_task_can_give_is_drawn() -> None:
    for task, method, name in (
        ("cifar10-jpeg-250", "mutual-mean-teacher", "wave"), ("sentiment-domains", "robust-ssl", "inner"),
    ):  # fmt: skip
        planned = search(method, draws=30, task=task)
        assert len({draw.params[name] for draw in planned.draws}) > 8
        assert name in planned.drawn


def test_the_seeds_of_a_search_are_one_fold_of_a_task_whose_seeds_are_folds() -> None:
    """The test countries of one fold train or validate the others: a choice over folds would have seen them all."""
    planned = search("supervised", task="wilds-poverty", seeds=[102, 107])
    assert planned.fold == 2
    assert planned.text == "tuned with 4 draws on seeds 102, 107 (fold 2) by rule validation"
    assert search("supervised").fold is None
    with pytest.raises(UsageError, match=r"Tune each fold by itself, on seeds 5 apart: -s 100, or -s 100,105,110\."):
        search("supervised", task="wilds-poverty", seeds=[100, 101])
    text = tuning.toml_pair("wilds-poverty", {"supervised": {}}, "validation", {}, planned.fold)
    assert text.startswith("# For seeds = [2] alone")
    assert tomllib.loads(text)["pairs"][0]["tasks"] == ["wilds-poverty"]


def test_seeds_of_tuning_are_the_folds_in_turn() -> None:
    assert [fold_of(seed, 5) for seed in (0, 4, 5, 99, 100, 104, 105, 111)] == [0, 4, None, None, 0, 4, 0, 1]
    poverty = registry.get("task", "wilds-poverty")
    for seed in (4, 100):
        assert make_spec(poverty, registry.get("method", "supervised"), {}, seed).seed == seed
    with pytest.raises(UsageError, match=r"are the 5 folds of its data, 0 to 4; it has no seed 7\."):
        make_spec(poverty, registry.get("method", "supervised"), {}, 7)


CURVES = [
    {"validation": [0.3, 0.25], "entropy": [0.9, 0.8], "transfer_score": [0.1, 0.5]},
    {"validation": [0.4, 0.2], "entropy": [0.7, 0.6], "transfer_score": [0.2, 0.3]},
    {"validation": [0.2, 0.5], "entropy": [0.1, 0.9], "transfer_score": [0.9, 0.4]},
    {"validation": [0.6, 0.6], "entropy": [0.2, 0.3], "transfer_score": [0.3, 0.3]},
]
"""Draw 1 ends at the best validation error, draw 2 begins with it; the earlier draw counts."""


@pytest.mark.parametrize(
    ("rule", "best", "score"), [("validation", 1, 0.2), ("entropy", 2, 0.1), ("transfer-score", 2, 0.9)]
)
def test_the_winner_by_each_rule(rule: str, best: int, score: float) -> None:
    planned = search(rule=tuning.tuning_rule(rule))
    # The test error would choose otherwise.
    found = {
        draw.specs[0].run_id: record(draw.specs[0], **curve, error=[0.9, 0.9] if at == best else [0.0, 0.0])
        for at, (draw, curve) in enumerate(zip(planned.draws, CURVES, strict=True))
    }
    trials = tuning.judge(planned, lambda spec: found[spec.run_id])
    won = tuning.winner(planned, trials)
    assert won is not None
    assert (won.draw.number, won.score) == (best, score)


def test_the_mean_over_seeds_chooses_and_a_failed_seed_excludes() -> None:
    planned = search(draws=3, seeds=[100, 101])
    scores = {(0, 100): 0.1, (0, 101): 0.5, (1, 100): 0.2, (1, 101): 0.2, (2, 100): 0.0}
    found = {}
    for draw in planned.draws:
        for spec in draw.specs:
            at = (draw.number, spec.seed)
            found[spec.run_id] = record(spec, validation=[scores[at]]) if at in scores else record(spec, "timeout")
    trials = tuning.judge(planned, lambda spec: found[spec.run_id])
    assert [trial.score for trial in trials] == [pytest.approx(0.3), 0.2, None]
    won = tuning.winner(planned, trials)
    assert won is not None
    assert won.draw.number == 1
    assert planned.text == "tuned with 3 draws on seeds 100, 101 by rule validation"


def test_no_winner_before_every_draw_has_its_record() -> None:
    planned = search()
    found = {draw.specs[0].run_id: record(draw.specs[0], validation=[0.1]) for draw in planned.draws[:3]}
    assert tuning.winner(planned, tuning.judge(planned, lambda spec: found.get(spec.run_id))) is None
    failed = tuning.judge(planned, lambda spec: record(spec, "failed"))
    assert tuning.winner(planned, failed) is None


def test_the_printed_pair_is_a_suite_of_the_drawn_runs(tmp_path: Path) -> None:
    searches = [search(name, budget={"limit": 77}) for name in ("fixmatch", "supervised")]
    found = {item.method.name: item.draws[2].params for item in searches}
    text = tuning.toml_pair("toy-adaptation", found, "validation", {"limit": 77})
    assert tomllib.loads(text)["pairs"][0]["methods"][0]["params"] == found["fixmatch"]
    path = tmp_path / "tuned.toml"
    path.write_text(f"seeds = [3]\n{text}\n")
    expected = {item.draws[2].specs[0].model_copy(update={"seed": 3}).run_id for item in searches}
    assert {spec.run_id for spec in load_suite(path).specs} == expected
