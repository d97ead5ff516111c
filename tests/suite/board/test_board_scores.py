"""The board of a task on small tables with answers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.board.example import ITEMS, worked_example
from selfbench.suite.board.export import board_data, json_text
from selfbench.suite.board.ranking import Rank
from selfbench.suite.board.scores import ALONE, FEW_SEEDS, RANKED, UPPER_BOUND, minimum_detectable_effect, score_field
from selfbench.suite.board.table import fields_of
from selfbench.suite.board.text import task_text
from selfbench.suite.registry import Entry


def entry(name: str, family: str, needs: tuple[str, ...] = ()) -> Entry:
    options = {"family": family, "protocol": "stream", "paper": "-", "needs": needs, "version": "1"}
    return Entry("method", name, name.title(), Path(__file__), None, "A method.", options)


def test_mean_and_standard_deviation(board_of) -> None:
    score = board_of({"a": [0.10, 0.12, 0.14], "b": [0.5, 0.5, 0.5]}).scores[0]
    assert score.mean == pytest.approx(0.12)
    assert score.sd == pytest.approx(0.02)  # n - 1 = 2 in the denominator
    assert score.finished == 3


def test_one_seed_has_no_standard_deviation(board_of) -> None:
    score = board_of({"a": [0.1], "b": [0.2, 0.2, 0.2]}).scores[0]
    assert (score.mean, score.sd, score.interval) == (0.1, None, None)


def test_rank_intervals_follow_better_and_worse(board_of) -> None:
    board = board_of({"a": [0.5] * 3, "b": [0.1] * 3, "c": [0.1] * 3, "d": [0.3] * 3})
    found = {score.label.split("@")[0]: str(score.rank) for score in board.scores}
    assert found == {"b": "1–2", "c": "1–2", "d": "3", "a": "4"}
    assert [score.letters for score in board.scores] == ["a", "a", "", ""]


def test_higher_is_better_for_accuracy(board_of) -> None:
    board = board_of({"a": [0.5] * 3, "b": [0.9] * 3}, primary="accuracy")
    assert [(score.row.method, str(score.rank)) for score in board.scores] == [("b", "1"), ("a", "2")]
    assert board.scores[1].gap == pytest.approx(-0.4)
    assert board.scores[1].rank_mean == pytest.approx(0.5)


def test_two_seeds_are_not_enough(board_of) -> None:
    board = board_of({"a": [0.1, 0.1], "b": [0.2] * 3, "c": [0.3] * 3})
    first = board.scores[0]
    assert (first.standing, first.rank, first.row.method) == (FEW_SEEDS, None, "a")
    assert board.compared == 2
    assert board.best is not None
    assert board.best.row.method == "b"


def test_a_method_stands_beside_the_control_of_its_own_view(run_of) -> None:
    """`flexmatch` cannot do without strong views, `noisy-student` and `dann` choose theirs, the others are weak."""
    errors = {
        ("erm", "{}"): 0.30,
        ("erm-augment", "{}"): 0.40,
        ("supervised", '{"augment":"weak"}'): 0.20,
        ("mean-teacher", "{}"): 0.35,
        ("flexmatch", "{}"): 0.10,
        ("noisy-student", "{}"): 0.45,
        ("dann", "{}"): 0.25,
        ("dann", '{"augment":"none"}'): 0.28,
        ("dann", '{"augment":"strong"}'): 0.43,
        ("oracle-labels", "{}"): 0.01,
        ("unknown", "{}"): 0.50,
    }
    runs = [
        run_of(method, seed, error + 0.01 * seed, params=params)
        for (method, params), error in errors.items()
        for seed in range(3)
    ]
    catalogue = Catalogue.registered()
    board = score_field(fields_of(runs, catalogue)[0], catalogue)
    found = {
        (score.row.method, score.row.outcomes[0].run.params): (score.control.split("[")[0], score.control_gap)
        for score in board.scores
        if score.control
    }
    assert {key: (name, round(gap, 6)) for key, (name, gap) in found.items()} == {
        ("mean-teacher", "{}"): ("supervised", 0.15),
        ("flexmatch", "{}"): ("erm-augment", -0.3),
        ("noisy-student", "{}"): ("erm-augment", 0.05),
        ("dann", "{}"): ("supervised", 0.05),
        ("dann", '{"augment":"none"}'): ("erm", -0.02),
        ("dann", '{"augment":"strong"}'): ("erm-augment", 0.03),
    }
    assert board.controlled
    rows = {row["method"].split("[")[0]: row for row in board_data(board)["rows"]}
    assert rows["flexmatch"]["control"].startswith("erm-augment")
    assert rows["flexmatch"]["gap_to_control"] == pytest.approx(-0.3)
    assert rows["flexmatch"]["control_low"] == pytest.approx(-0.3) == rows["flexmatch"]["control_high"]
    assert "−30.0 (−30.0 to −30.0)" in task_text(board).split("against erm-augment")[1].splitlines()[0]


def test_the_strong_view_of_supervised_stands_for_erm_augment_and_no_view_for_another(run_of) -> None:
    catalogue = Catalogue.registered()

    def controls(*augments: str) -> set[str]:
        given = [("supervised", f'{{"augment":"{augment}"}}') for augment in augments]
        methods = [*given, ("fixmatch", "{}"), ("mean-teacher", "{}")]
        runs = [run_of(name, seed, 0.1, params=params) for name, params in methods for seed in range(3)]
        board = score_field(fields_of(runs, catalogue)[0], catalogue)
        return {f"{score.row.method}: {score.control.partition(', ')[0]}" for score in board.scores if score.control}

    assert controls("weak", "strong") == {"fixmatch: supervised[augment=strong", "mean-teacher: supervised[lr_scale=?]"}
    assert controls("none") == set()
    assert controls("strong") == {"fixmatch: supervised[augment=strong"}


def test_a_single_method_is_not_ranked(board_of) -> None:
    board = board_of({"a": [0.1] * 3})
    assert (board.scores[0].standing, board.scores[0].rank, board.compared) == (ALONE, None, 0)


def test_a_failed_seed_counts_as_the_worst_score_of_that_seed(board_of) -> None:
    board = board_of({"a": [0.1, 0.1, "timeout", 0.1], "b": [0.2, 0.3, 0.4, 0.2], "c": [0.5, 0.2, 0.3, 0.6]})
    a = next(score for score in board.scores if score.row.method == "a")
    assert a.mean == pytest.approx(0.1)  # over the finished seeds
    assert a.rank_mean == pytest.approx((0.1 + 0.1 + 0.4 + 0.1) / 4)
    assert (a.imputed, a.failed, a.row.failures) == (1, 1, {"timeout": 1})
    assert a.standing == RANKED


def test_a_run_that_could_not_begin_is_shown_as_failed_and_not_imputed(run_of) -> None:
    scores = {"a": [0.1, 0.1, 0.1, None], "b": [0.2, 0.3, 0.4, 0.2], "c": [0.5, 0.2, 0.3, 0.6]}
    runs = [
        run_of(method, seed, value) if value is not None else run_of(method, seed, None, "failed", bundle="")
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    board = score_field(fields_of(runs, Catalogue())[0], Catalogue())
    a = next(score for score in board.scores if score.row.method == "a")
    assert (a.imputed, a.failed) == (0, 1)
    assert a.rank_mean == pytest.approx(0.1)


def test_a_seed_on_which_all_failed_says_nothing(board_of) -> None:
    board = board_of({"a": [0.1, 0.1, 0.1, "oom"], "b": [0.2, 0.2, 0.2, "failed"]})
    assert [score.imputed for score in board.scores] == [0, 0]
    assert [str(score.rank) for score in board.scores] == ["1", "2"]


def test_a_method_that_always_fails_ranks_with_the_worst(board_of) -> None:
    board = board_of({"a": [0.1] * 3, "b": [0.3] * 3, "c": ["failed"] * 3})
    found = {score.row.method: score for score in board.scores}
    assert found["c"].mean is None
    assert found["c"].rank == found["b"].rank == Rank(2, 3)


def test_a_finished_run_without_its_metric_counts_as_failed(run_of) -> None:
    runs = [run_of("a", seed, None) for seed in range(3)]
    row = fields_of(runs, Catalogue())[0].rows[0]
    assert row.failures == {"failed": 3}


def test_upper_bounds_are_shown_and_not_ranked(board_of) -> None:
    methods = {"oracle": entry("oracle", "oracle"), "a": entry("a", "x"), "b": entry("b", "baseline")}
    board = board_of(
        {"oracle": [0.01, 0.9, 0.01], "a": [0.1, "failed", 0.1], "b": [0.2] * 3}, Catalogue(methods=methods)
    )
    found = {score.label: score for score in board.scores}
    assert (found["oracle"].standing, found["oracle"].rank, found["oracle"].kind) == (UPPER_BOUND, None, "upper-bound")
    assert found["b"].kind == "control"
    assert board.compared == 2
    # The oracle's 0.9 is not the worst score of seed 1 for the others.
    assert found["a"].rank_mean == pytest.approx((0.1 + 0.2 + 0.1) / 3)


def test_the_minimum_detectable_effect(board_of) -> None:
    assert minimum_detectable_effect(1000) == pytest.approx(2.8 * math.sqrt(0.2 / 1000))
    board = board_of({"a": [0.10] * 3, "b": [0.13] * 3, "c": [0.15] * 3})
    assert board.mde == pytest.approx(0.0396, abs=1e-4)
    # a and b are 0.03 apart, less than can be detected; a and c are 0.05 apart.
    assert [str(score.rank) for score in board.scores] == ["1–2", "1–3", "2–3"]


@pytest.mark.parametrize(("tags", "items"), [((), 1000), (("pairs",), 500)])
def test_examples_that_are_scored_in_pairs_are_half_as_many_items(board_of, tags: tuple[str, ...], items: int) -> None:
    task = Entry("task", "toy", "Toy", Path(__file__), None, "", {"protocol": "policy", "tags": tags})
    board = board_of({"a": [0.10] * 3, "b": [0.13] * 3}, Catalogue(tasks={"toy": task}))
    assert board.items == board_data(board)["items"] == items
    assert board.mde == pytest.approx(2.8 * math.sqrt(0.2 / items))


def test_metrics_that_are_no_shares_have_no_minimum_detectable_effect(board_of) -> None:
    assert board_of({"a": [0.10] * 3, "b": [0.11] * 3}, primary="nll").mde is None


@pytest.mark.parametrize(
    "other",
    [
        {"task_version": "2"},
        {"selection": "validation"},
        {"device": "cuda"},
        {"precision": "bf16"},
        {"threads": 2},
        {"budget": '{"currency":"passes","limit":200.0,"memory_mb":1024,"wall_seconds":60.0}'},
    ],
)
def test_unequal_conditions_are_never_mixed(run_of, other: dict[str, object]) -> None:
    runs = [run_of("a", 0, 0.1), run_of("a", 1, 0.2), run_of("a", 0, 0.3, **other)]
    fields = fields_of(runs, Catalogue())
    assert sorted(len(field.rows[0].outcomes) for field in fields) == [1, 2]


def test_the_order_of_records_does_not_matter(run_of) -> None:
    rng = np.random.default_rng(0)
    runs = [run_of(method, seed, float(rng.random())) for method in "abcde" for seed in range(4)]
    texts = set()
    for _ in range(5):
        fields = fields_of([runs[i] for i in rng.permutation(len(runs))], Catalogue())
        texts.add(json_text(board_data(score_field(fields[0], Catalogue()))))
    assert len(texts) == 1


def test_the_worked_example_of_the_rules_page() -> None:
    board = worked_example()
    assert board.mde == pytest.approx(2.8 * math.sqrt(0.2 / ITEMS))
    found = {score.row.method: score for score in board.scores}
    assert found["epsilon"].standing == FEW_SEEDS
    # beta is 1.0 points behind alpha, less than the 1.25 that can be detected.
    assert str(found["alpha"].rank) == str(found["beta"].rank) == "1–2"
    assert str(found["gamma"].rank) == str(found["delta"].rank) == "3–4"
    # delta failed on seed 1, where gamma's 24.8 was the worst.
    assert found["delta"].rank_mean == pytest.approx((0.239 + 0.248 + 0.237 + 0.242 + 0.240) / 5)
