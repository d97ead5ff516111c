"""What a task's page shows beside the primary metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from selfbench.suite.board.scores import TaskBoard
from selfbench.suite.render.details import other_metrics


def records_of(board: TaskBoard, metrics: Callable[[str, int], dict[str, float]]) -> dict[str, Any]:
    return {
        item.run.run_id: {
            "metrics": {"error": item.value, **metrics(score.row.method, item.seed)},
            "diagnostics": {"labels": 3.0},
        }
        for score in board.scores
        for item in score.row.outcomes
        if item.value is not None
    }


def test_means_over_seeds_and_the_end_against_the_source(board_of: Callable[..., TaskBoard]) -> None:
    board = board_of({"source": [0.5, 0.5, 0.5], "tent": [0.3, 0.2, None], "norm": [0.4, "failed", 0.4]})
    end = {"source": 0.6, "tent": 0.2, "norm": 0.5}

    def metrics(method: str, seed: int) -> dict[str, float]:
        found = {"accuracy": 0.5, "nll": 1.0 + seed, "end_error": end[method] + 0.01 * seed * (method == "tent")}
        return found if method != "norm" else found | {"ece": 0.25}

    shown = other_metrics(board, records_of(board, metrics))
    assert shown is not None
    assert [item.name for item in shown.metrics] == ["end_error", "nll", "ece"], "accuracy says what error says"
    table = {score.row.method: values for score, values in shown.rows}
    assert table["tent"] == (pytest.approx(0.205), 1.5, None)
    assert table["norm"] == (0.5, 2.0, 0.25)
    gaps = dict(zip((score.row.method for score, _ in shown.rows), shown.to_source or (), strict=True))
    assert gaps == {"source": 0.0, "tent": pytest.approx(-0.395), "norm": pytest.approx(-0.1)}


def test_without_a_source_there_is_no_difference_to_it(board_of: Callable[..., TaskBoard]) -> None:
    board = board_of({"tent": [0.3, 0.2], "norm": [0.4, 0.4]})
    shown = other_metrics(board, records_of(board, lambda method, seed: {"end_error": 0.5}))
    assert shown is not None
    assert shown.to_source is None


def test_nothing_beside_the_primary_metric_shows_nothing(board_of: Callable[..., TaskBoard]) -> None:
    board = board_of({"tent": [0.3, 0.2]})
    assert other_metrics(board, records_of(board, lambda method, seed: {"accuracy": 0.5})) is None
