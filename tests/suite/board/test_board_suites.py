"""Summaries over tasks, and suites with runs that are still to be made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.board.suites import mean_ranks, score_suite, summarise
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef


@dataclass(frozen=True)
class TinySuite:
    specs: tuple[RunSpec, ...]
    name: str = "tiny"
    title: str = "Tiny"
    description: str = "Made for a test."


def spec_of(task: str, method: str, seed: int) -> RunSpec:
    return RunSpec(
        task=TaskRef(name=task, version="1"),
        method=MethodRef(name=method, version="1"),
        seed=seed,
        budget=Budget(limit=100),
    )


def test_means_worst_task_and_mean_rank_by_hand(board_of) -> None:
    boards = [
        board_of({"a": [0.1] * 3, "b": [0.2] * 3, "c": [0.3] * 3}, task="one"),
        board_of({"a": [0.5] * 3, "b": [0.2] * 3, "c": [0.6] * 3}, task="two"),
        board_of({"a": [0.2] * 3, "b": [0.4] * 3, "c": [0.4] * 3}, task="three"),
    ]
    found = {row.method: row for row in summarise("stream", "error", boards).rows}
    assert found["a"].mean == pytest.approx(0.8 / 3)
    assert (found["a"].worst, found["a"].worst_task) == (0.5, "two")
    # Ranks by task: a 1, 2, 1; b 2, 1, 2.5; c 3, 3, 2.5.
    assert found["a"].mean_rank == pytest.approx(4 / 3)
    assert found["b"].mean_rank == pytest.approx(5.5 / 3)
    assert found["c"].mean_rank == pytest.approx(8.5 / 3)
    # Scores do not vary over seeds, so a resample of three tasks spans the ranks that occur.
    assert found["a"].rank_interval == (1.0, 2.0)
    assert found["c"].rank_interval == (2.5, 3.0)


def test_methods_that_miss_a_task_stand_apart(board_of) -> None:
    boards = [
        board_of({"a": [0.1] * 3, "b": [0.2] * 3, "c": [0.2] * 3}, task="one"),
        board_of({"a": [0.1] * 3, "b": [0.2] * 3}, task="two"),
    ]
    summary = summarise("stream", "error", boards)
    assert [row.method for row in summary.rows] == ["a", "b"]
    assert [(label.split("@")[0], tasks) for label, tasks in summary.partial] == [("c", 1)]


def test_two_tasks_have_no_interval(board_of) -> None:
    boards = [board_of({"a": [0.1] * 3, "b": [0.2] * 3}, task=task) for task in ("one", "two")]
    summary = summarise("stream", "error", boards)
    assert [row.mean_rank for row in summary.rows] == [1.0, 2.0]
    assert [row.rank_interval for row in summary.rows] == [None, None]
    assert summary.note.startswith("Not enough tasks")


def test_two_seeds_have_no_mean_rank(board_of) -> None:
    boards = [board_of({"a": [0.1] * 2, "b": [0.2] * 2}, task=task) for task in ("one", "two", "three")]
    summary = summarise("stream", "error", boards)
    assert [row.mean_rank for row in summary.rows] == [None, None]
    assert summary.note.startswith("Not enough seeds")


def test_mean_rank_intervals_hold_the_rank_and_are_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    tables = [rng.random((4, 1)) + 0.3 * rng.random((4, 5)) for _ in range(6)]
    ranks = mean_ranks(tables)
    assert ranks == mean_ranks(tables)
    assert sum(rank for rank, _ in ranks) == pytest.approx(10)  # 1 + 2 + 3 + 4
    for rank, interval in ranks:
        assert interval is not None
        assert 1 <= interval.low <= rank <= interval.high <= 4


def test_seeds_matter_within_tasks() -> None:
    """Two methods that swap places between seeds of every task cannot have a mean rank without spread."""
    table = np.array([[0.1, 0.3, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2]])
    (_, first), _ = mean_ranks([table] * 4)
    assert first is not None
    assert first.low < first.high


def test_a_suite_selects_its_runs_and_counts_the_missing(run_of) -> None:
    specs = tuple(spec_of("toy", method, seed) for method in ("a", "b") for seed in range(3))
    budget = '{"currency":"passes","limit":100.0,"memory_mb":4096,"wall_seconds":600.0}'
    runs = [run_of(s.method.name, s.seed, 0.1, run_id=s.run_id, budget=budget) for s in specs[:4]]
    stranger = run_of("z", 0, 0.01, budget=budget)
    failed = run_of("b", 1, None, "oom", run_id=specs[4].run_id, budget=budget)
    suite = score_suite(TinySuite(specs), [*runs, stranger, failed], Catalogue())
    assert suite.counts == {"missing": 1, "ok": 4, "oom": 1}
    assert (suite.planned, suite.finished, suite.failed, suite.missing) == (6, 4, 1, 1)
    assert len(suite.tasks) == 1
    found = {score.row.method: score for score in suite.tasks[0].scores}
    assert found.keys() == {"a", "b"}
    assert (found["b"].finished, found["b"].failed, found["b"].missing) == (1, 1, 1)


def test_an_empty_suite_has_rows_without_scores() -> None:
    suite = score_suite(TinySuite((spec_of("toy", "a", 0),)), [], Catalogue())
    assert not suite.has_records
    assert suite.tasks[0].scores[0].mean is None
    assert suite.protocols == ()


def test_protocols_and_metrics_are_not_averaged_with_each_other(run_of) -> None:
    specs = [spec_of(task, "a", seed) for task in ("one", "two") for seed in range(3)]
    metric = {"one": "error", "two": "nll"}
    budget = '{"currency":"passes","limit":100.0,"memory_mb":4096,"wall_seconds":600.0}'
    runs = [
        run_of("a", s.seed, 0.1, run_id=s.run_id, task=s.task.name, primary=metric[s.task.name], budget=budget)
        for s in specs
    ]
    suite = score_suite(TinySuite(tuple(specs)), runs, Catalogue())
    assert [(item.metric, len(item.tasks)) for item in suite.protocols] == [("error", 1), ("nll", 1)]


def test_devices_are_not_averaged_with_each_other(run_of) -> None:
    specs = [
        spec_of("one", "a", seed).model_copy(update={"device": device})
        for device in ("cpu", "cuda")
        for seed in range(3)
    ]
    budget = '{"currency":"passes","limit":100.0,"memory_mb":4096,"wall_seconds":600.0}'
    runs = [run_of("a", s.seed, 0.1, run_id=s.run_id, task="one", device=s.device, budget=budget) for s in specs]
    suite = score_suite(TinySuite(tuple(specs)), runs, Catalogue())
    assert [item.machine for item in suite.protocols] == ["cpu, fp32, 1 thread", "cuda, fp32, 1 thread"]
    suite = score_suite(TinySuite(tuple(specs[:3])), runs, Catalogue())
    assert [item.machine for item in suite.protocols] == [""]


def test_a_method_without_any_run_says_so(run_of) -> None:
    specs = tuple(spec_of("toy", method, seed) for method in ("a", "b") for seed in range(3))
    budget = '{"currency":"passes","limit":100.0,"memory_mb":4096,"wall_seconds":600.0}'
    runs = [run_of("a", s.seed, 0.1, run_id=s.run_id, budget=budget) for s in specs[:2]]
    found = {s.row.method: s.standing for s in score_suite(TinySuite(specs), runs, Catalogue()).tasks[0].scores}
    assert found == {"a": "not enough seeds", "b": "not run yet"}
