"""Boards as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from . import formats
from .scores import NOT_RUN, RANKED, UNGATED, Score, TaskBoard
from .suites import ProtocolBoard, SuiteBoard

_HEAD = ("rank", "ties", "method", "mean ± sd", "against the best", "seeds", "notes")
_RIGHT = (3, 4, 5)


def suite_text(suite: SuiteBoard) -> str:
    """All of a suite: its progress, its summaries over tasks, its tasks."""
    head = f"suite {suite.name}: {suite.finished} of {formats.plural(suite.planned, 'run')} finished"
    head += f", {suite.failed} failed" if suite.failed else ""
    head += f", {suite.missing} to run" if suite.missing else ""
    summaries = [protocol_text(item) for item in suite.protocols if len(item.tasks) > 1]
    return "\n\n".join([head, *summaries, *(task_text(board) for board in suite.tasks)])


def task_text(board: TaskBoard) -> str:
    """One task's board as an aligned table under two lines that say what it shows."""
    field, metric = board.field, board.field.metric
    facts = [f"{metric.title.lower()}{' in %' if metric.percent else ''}, {metric.better} is better"]
    if board.mde:
        facts.append(f"gaps under {formats.number(board.mde, metric)} are not ranked")
    if board.compared:
        facts.append(f"{board.compared} methods ranked over {formats.plural(len(field.seeds), 'seed')}")
    if field.data > 1:
        facts.append(f"CAUTION: these runs are on {field.data} different data digests")
    lines = [_HEAD, *(_line(score, board) for score in board.scores)]
    return "\n".join([f"{field.task} ({field.condition.text})", "; ".join(facts), *_aligned(lines, _RIGHT)])


def protocol_text(board: ProtocolBoard) -> str:
    """The summary over the tasks of one protocol."""
    metric = board.tasks[0].field.metric
    lines: list[tuple[str, ...]] = [("mean rank", "method", "mean", "worst", "worst task", "notes")]
    for row in board.rows:
        rank = formats.DASH if row.mean_rank is None else f"{row.mean_rank:.1f}"
        if row.rank_interval:
            rank += f" ({row.rank_interval.low:.1f} to {row.rank_interval.high:.1f})"
        notes = [row.kind] if row.kind != "method" else []
        if row.imputed:
            notes.append(f"{formats.plural(row.imputed, 'failed seed')} imputed")
        if row.needs:
            notes.append(f"needs {', '.join(row.needs)}")
        lines.append(
            (rank, row.label, formats.number(row.mean, metric), formats.number(row.worst, metric), row.worst_task,
             "; ".join(notes))
        )  # fmt: skip
    on = f" on {board.machine}" if board.machine else ""
    text = [
        f"over all {len(board.tasks)} {board.protocol} tasks{on}: {metric.title.lower()}, {metric.better} is better"
    ]
    text += _aligned(lines, (2, 3))
    text += [board.note] if board.note else []
    if board.partial:
        some = ", ".join(f"{label} ({count} of {len(board.tasks)})" for label, count in board.partial)
        text.append(f"not on all tasks: {some}")
    return "\n".join(text)


def _line(score: Score, board: TaskBoard) -> tuple[str, ...]:
    metric = board.field.metric
    mean = formats.number(score.mean, metric)
    if score.sd is not None:
        mean += f" ± {formats.spread(score.sd, metric)}"
    against = ""
    if score.gap is not None:
        against = f"{formats.signed(score.gap, metric)} ({formats.between(score.gap_interval, metric, plus=True)})"
    elif score is board.best:
        against = "best"
    notes = [score.kind] if score.kind == "control" else []
    if score.standing != RANKED:
        notes.append(score.standing)
    notes += [f"{count} {status}" for status, count in score.row.failures.items()]
    if score.imputed:
        notes.append(f"{score.imputed} imputed")
    if score.missing and score.standing != NOT_RUN:
        notes.append(f"{score.missing} to run")
    if score.needs:
        notes.append(f"needs {', '.join(score.needs)}")
    if score.control_gap is not None:
        gap = formats.signed(score.control_gap, metric)
        notes.append(f"against {score.control} {gap} ({formats.between(score.control_interval, metric, plus=True)})")
    if score.ungated:
        notes.append(UNGATED)
    rank = str(score.rank) if score.rank else formats.DASH
    return rank, score.letters, score.label, mean, against, str(score.finished), "; ".join(notes)


def _aligned(lines: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
