"""Boards and runs as CSV and JSON. Equal boards give equal bytes."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..index import Summary
from .scores import UNGATED, TaskBoard
from .suites import ProtocolBoard, SuiteBoard
from .table import budget_text

_FORMULA = ("=", "+", "-", "@")
_BREAKS = str.maketrans("\t\r\n", "   ")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with text cells that a spreadsheet would run as a formula made harmless by a leading apostrophe.

    Line breaks and tabs in cells become blanks.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def json_text(value: Any) -> str:
    """JSON on one line: an indented form takes Python's slow encoder, ten times as long."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def board_rows(board: TaskBoard) -> list[dict[str, Any]]:
    """One flat line per row of a task's board."""
    condition = board.field.condition
    return [
        {
            "task": condition.task,
            "task_version": condition.version,
            "metric": condition.primary,
            "budget": budget_text(json.loads(condition.budget)),
            "selection": condition.selection,
            "device": condition.device,
            "precision": condition.precision,
            "threads": condition.threads,
            "generation": condition.generation,
            "method": score.label,
            "kind": score.kind,
            "needs": " ".join(score.needs),
            "judge": UNGATED if score.ungated else "",
            "standing": score.standing,
            "rank_low": score.rank.low if score.rank else None,
            "rank_high": score.rank.high if score.rank else None,
            "ties": score.letters,
            "mean": score.mean,
            "sd": score.sd,
            "interval_low": score.interval.low if score.interval else None,
            "interval_high": score.interval.high if score.interval else None,
            "gap_to_best": score.gap,
            "gap_low": score.gap_interval.low if score.gap_interval else None,
            "gap_high": score.gap_interval.high if score.gap_interval else None,
            "control": score.control,
            "gap_to_control": score.control_gap,
            "control_low": score.control_interval.low if score.control_interval else None,
            "control_high": score.control_interval.high if score.control_interval else None,
            "rank_mean": score.rank_mean,
            "finished": score.finished,
            "failed": score.row.count("failed"),
            "timeout": score.row.count("timeout"),
            "oom": score.row.count("oom"),
            "missing": score.missing,
            "imputed": score.imputed,
            **{f"mean_{name}": score.cost.get(name) for name in ("passes", "tokens", "seconds", "gpu_seconds",
                                                                  "memory_mb", "gpu_memory_mb")},
        }
        for score in board.scores
    ]  # fmt: skip


def boards_csv(boards: Iterable[TaskBoard]) -> str:
    rows = [row for board in boards for row in board_rows(board)]
    return csv_text(list(rows[0]) if rows else [], [list(row.values()) for row in rows])


def board_data(board: TaskBoard) -> dict[str, Any]:
    """A task's board as plain data."""
    return {
        "task": board.field.task,
        "condition": board.field.condition._asdict(),
        "better": board.field.metric.better,
        "items": board.items,
        "minimum_detectable_effect": board.mde,
        "compared": board.compared,
        "seeds": list(board.field.seeds),
        "rows": [
            row | {"runs": [{"seed": o.seed, "status": o.status, "value": o.value, "run_id": o.run.run_id}
                            for o in score.row.outcomes]}
            for row, score in zip(board_rows(board), board.scores, strict=True)
        ],
    }  # fmt: skip


def suite_data(suite: SuiteBoard) -> dict[str, Any]:
    """A suite's board as plain data."""
    return {
        "suite": suite.name,
        "title": suite.title,
        "description": suite.description,
        "counts": suite.counts,
        "protocols": [_protocol_data(item) for item in suite.protocols],
        "tasks": [board_data(board) for board in suite.tasks],
    }


def runs_csv(runs: Iterable[Summary]) -> str:
    return csv_text(Summary._fields, runs)


def _protocol_data(item: ProtocolBoard) -> dict[str, Any]:
    return {
        "protocol": item.protocol,
        "metric": item.metric,
        "machine": item.machine,
        "tasks": [board.field.task for board in item.tasks],
        "note": item.note,
        "partial": [{"method": label, "tasks": tasks} for label, tasks in item.partial],
        "rows": [
            {
                "method": row.label,
                "kind": row.kind,
                "needs": list(row.needs),
                "mean": row.mean,
                "worst": row.worst,
                "worst_task": row.worst_task,
                "mean_rank": row.mean_rank,
                "rank_interval": list(row.rank_interval) if row.rank_interval else None,
                "imputed": row.imputed,
            }
            for row in item.rows
        ],
    }


def _cell(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=4096)
def _text(value: str) -> str:
    flat = value.translate(_BREAKS)
    return f"'{flat}" if flat.lstrip().startswith(_FORMULA) else flat
