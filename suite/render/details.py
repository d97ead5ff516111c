"""What only the records themselves hold: curves along the run and scores by domain, averaged over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..board.scores import Score, TaskBoard
from ..metrics import METRICS, PROBE, Metric, metric_of
from ..record import TOKENS
from .charts import Curve, heat_steps

Records = Mapping[str, Mapping[str, Any]]
"""run id -> the record as plain data."""
MOST_CURVES = 12
MOST_POINTS = 60
MOST_HEAT_ROWS = 40


@dataclass(frozen=True)
class HeatRow:
    """One method's score in every domain, None where it has none, and the tint (0 best to 9 worst) of each."""

    score: Score
    cells: tuple[tuple[float | None, int], ...]


@dataclass(frozen=True)
class Heat:
    metric: str
    domains: tuple[str, ...]
    rows: tuple[HeatRow, ...]


@dataclass(frozen=True)
class OtherMetrics:
    """Means over seeds of what was measured beside the primary metric, by method; None where a method lacks one.

    `to_source` is the mean difference to the method `source` in `end_error`, over common seeds.
    """

    metrics: tuple[Metric, ...]
    rows: tuple[tuple[Score, tuple[float | None, ...]], ...]
    to_source: tuple[float | None, ...] | None


def shown(scores: Iterable[Score], most: int) -> list[Score]:
    """The best `most` scores that have finished runs; controls are kept whatever their place."""
    have = [score for score in scores if score.finished]
    kept = [score for score in have if score.kind != "method"]
    room = max(most - len(kept), 0)
    best = [score for score in have if score.kind == "method"][:room]
    return [score for score in have if score in best or score in kept]


def wanted(board: TaskBoard) -> list[str]:
    """The run ids whose records `curves` and `heat` read."""
    scores = shown(board.scores, max(MOST_CURVES, MOST_HEAT_ROWS))
    return [item.run.run_id for score in scores for item in score.row.outcomes if item.value is not None]


def probes(records: Records) -> list[str]:
    """The names of the values of curves that are no score of the task itself, such as what a policy has forgotten."""
    return sorted({name for record in records.values() for p in record["curve"] for name in p["values"]
                   if name.startswith(PROBE)})  # fmt: skip


def curves(board: TaskBoard, records: Records, name: str = "") -> list[Curve]:
    """Mean curves of the primary metric, or of `name`, over seeds, with the range between them."""
    name = name or board.field.condition.primary
    found = []
    for score in shown(board.scores, MOST_CURVES):
        lines = []
        for record in _records(score, records):
            points = [p for p in record["curve"] if name in p["values"]]
            if len(points) > 1:
                lines.append(([float(p["x"]) for p in points], [float(p["values"][name]) for p in points]))
        if lines:
            found.append(_curve(score, lines))
    return found


def heat(board: TaskBoard, records: Records, metric: Metric) -> Heat | None:
    """The table of the primary metric by domain, or None where the records have no domains."""
    name = board.field.condition.primary
    rows: list[tuple[Score, dict[str, float]]] = []
    for score in shown(board.scores, MOST_HEAT_ROWS):
        gathered: dict[str, list[float]] = {}
        for record in _records(score, records):
            for domain, value in record["groups"].get(name, {}).items():
                gathered.setdefault(domain, []).append(float(value))
        if gathered:
            rows.append((score, {domain: float(np.mean(values)) for domain, values in gathered.items()}))
    if not rows:
        return None
    domains = tuple(sorted({domain for _, means in rows for domain in means}))
    sign = 1 if metric.better == "lower" else -1
    tint = heat_steps(sign * value for _, means in rows for value in means.values())
    return Heat(name, domains, tuple(HeatRow(score, _cells(means, domains, tint, sign)) for score, means in rows))


def tokens(board: TaskBoard, records: Records) -> list[tuple[Score, tuple[float | None, ...]]]:
    """Mean tokens of a run by method: all, generated, scored and trained on, None where records do not tell them apart.

    Empty where no run takes any.
    """
    rows: list[tuple[Score, tuple[float | None, ...]]] = []
    for score in shown(board.scores, MOST_HEAT_ROWS):
        costs = [record["cost"] for record in _records(score, records)]
        apart = all(cost["tokens"] == sum(cost.get(name, 0) for name in TOKENS) for cost in costs)
        parts = (float(np.mean([cost.get(name, 0) for cost in costs])) if apart else None for name in TOKENS)
        rows.append((score, (float(np.mean([cost["tokens"] for cost in costs])), *parts)))
    return rows if any(values[0] for _, values in rows) else []


def label_correlation(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Of a stream, the mean over the records that say it; None where none does, as earlier ones did not."""
    said = [record["diagnostics"]["label_correlation"] for record in records
            if "label_correlation" in record["diagnostics"]]  # fmt: skip
    return float(np.mean(said)) if said else None


def other_metrics(board: TaskBoard, records: Records) -> OtherMetrics | None:
    """What the records hold beside the primary metric, or None where that is nothing.

    Diagnostics are among them where they have a title in `METRICS`.
    """
    primary = board.field.condition.primary
    gathered: list[tuple[Score, dict[str, list[float]]]] = []
    for score in shown(board.scores, MOST_HEAT_ROWS):
        values: dict[str, list[float]] = {}
        for record in _records(score, records):
            for name, value in (record["diagnostics"] | record["metrics"]).items():
                values.setdefault(name, []).append(float(value))
        gathered.append((score, values))
    present = {name for _, values in gathered for name in values} - {primary, "accuracy" if primary == "error" else ""}
    names = [name for name in METRICS if name in present]
    names += sorted(name for name in present if name.startswith(PROBE) and name not in METRICS)
    if not names:
        return None
    rows = [
        (score, tuple(float(np.mean(values[name])) if name in values else None for name in names))
        for score, values in gathered
    ]
    ends = [_ends(score, records) for score, _ in gathered]
    source = next((end for (score, _), end in zip(gathered, ends, strict=True) if score.row.method == "source"), {})
    gaps = [[end[seed] - source[seed] for seed in end.keys() & source.keys()] for end in ends]
    to_source = tuple(float(np.mean(gap)) if gap else None for gap in gaps) if source else None
    return OtherMetrics(tuple(map(metric_of, names)), tuple(rows), to_source)


def _ends(score: Score, records: Records) -> dict[int, float]:
    """seed -> error at the end of the stream, where it was measured."""
    found = {item.seed: records[item.run.run_id]["metrics"] for item in score.row.outcomes if item.value is not None}
    return {seed: float(metrics["end_error"]) for seed, metrics in found.items() if "end_error" in metrics}


def _cells(
    means: dict[str, float], domains: Sequence[str], tint: Any, sign: int
) -> tuple[tuple[float | None, int], ...]:
    return tuple((means[d], tint(sign * means[d])) if d in means else (None, 0) for d in domains)


def _records(score: Score, records: Records) -> list[Mapping[str, Any]]:
    return [records[item.run.run_id] for item in score.row.outcomes if item.value is not None]


def _curve(score: Score, lines: Sequence[tuple[list[float], list[float]]]) -> Curve:
    """All seeds on the first one's points, thinned; seeds that ended elsewhere are interpolated."""
    grid = np.array(lines[0][0])
    if len(grid) > MOST_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MOST_POINTS).round().astype(int)]
    values = np.array([np.interp(grid, x, y) for x, y in lines])
    return Curve(
        score.label,
        score.kind,
        grid.tolist(),
        values.mean(axis=0).tolist(),
        values.min(axis=0).tolist(),
        values.max(axis=0).tolist(),
    )
