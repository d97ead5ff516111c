"""Runs by hand: one line of the index with the few fields that a test is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import pytest

from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.board.scores import TaskBoard, score_field
from selfbench.suite.board.table import fields_of
from selfbench.suite.index import Summary

MakeRun = Callable[..., Summary]
MakeBoard = Callable[..., TaskBoard]


def make_run(method: str, seed: int, value: float | None, status: str = "ok", **other: object) -> Summary:
    given: dict[str, object] = {
        "run_id": f"{method}-{other.get('task', 'toy')}-{seed}-{other.get('params', '')}",
        "task": "toy",
        "task_version": "1",
        "method": method,
        "method_version": "1",
        "params": "{}",
        "seed": seed,
        "budget": json.dumps({"currency": "passes", "limit": 100.0, "wall_seconds": 60.0, "memory_mb": 1024}),
        "selection": "last",
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "status": status,
        "primary": "error",
        "value": value,
        "n": 1000 if value is not None else 0,
        "budget_used_up": 0,
        "passes": 100.0,
        "tokens": 0,
        "seconds": 1.0,
        "gpu_seconds": 0.0,
        "memory_mb": 100.0,
        "gpu_memory_mb": 0.0,
        "bundle": "of the run",
    }
    return Summary(**{**given, **other})  # type: ignore[arg-type]


def make_board(
    scores: Mapping[str, Sequence[float | str | None]], catalogue: Catalogue | None = None, **other: object
) -> TaskBoard:
    """The board of one field: per method its values by seed, a status for a failed run, None for no run."""
    runs = [
        make_run(method, seed, None, value, **other)
        if isinstance(value, str)
        else make_run(method, seed, value, **other)
        for method, values in scores.items()
        for seed, value in enumerate(values)
        if value is not None
    ]
    fields = fields_of(runs, catalogue or Catalogue())
    assert len(fields) == 1
    return score_field(fields[0], catalogue or Catalogue())


@pytest.fixture(name="run_of")
def _run_of() -> MakeRun:
    return make_run


@pytest.fixture(name="board_of")
def _board_of() -> MakeBoard:
    return make_board
