"""What the tasks of one family measure, beside what is known in closed form: plots for the pages of such tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..board.scores import TaskBoard
from ..metrics import METRICS, Metric
from . import charts, details

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """The mean over seeds of one method on one task, and the lowest and the highest seed."""

    at: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    """One method in one panel."""

    label: str
    kind: str
    points: tuple[Point, ...]
    svg: Markup


@dataclass(frozen=True)
class PanelPlots:
    """The methods of a panel, each beside the same curves."""

    title: str
    axis: str
    metric: Metric
    places: tuple[float, ...]
    curves: tuple[tuple[str, tuple[float | None, ...]], ...]
    """Names of the known curves, and their values at `places`."""
    plots: tuple[Plot, ...]


def members(options: Mapping[str, Mapping[str, Any]], family: str) -> list[str]:
    """The tasks of `family`, by panel and place; `options` are those of all registered tasks."""
    found = [
        (own["panel"], own["at"], name) for name, of in options.items() if (own := of.get("references") or {})
        and own["family"] == family
    ]  # fmt: skip
    return [name for *_, name in sorted(found, key=lambda item: (len(item[0]), item))]


def panel_plots(
    options: Mapping[str, Mapping[str, Any]], boards: Mapping[str, TaskBoard], records: Records, family: str
) -> list[PanelPlots]:
    """Every panel of `family`: `boards` are those of its tasks that have one, `records` what they hold."""
    panels: dict[str, list[str]] = {}
    for name in members(options, family):
        panels.setdefault(options[name]["references"]["panel"], []).append(name)
    return [_panel(title, names, options, boards, records) for title, names in panels.items()]


def _panel(
    title: str,
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    boards: Mapping[str, TaskBoard],
    records: Records,
) -> PanelPlots:
    own = [options[name]["references"] for name in names]
    metric = METRICS[own[0]["metric"]]
    curves = {curve: points for part in own for curve, points in part.get("curves", {}).items()}
    measured: dict[tuple[str, str], list[Point]] = {}
    for name, part in zip(names, own, strict=True):
        for label, kind, point in _points(boards.get(name), records, part["at"], metric.name):
            measured.setdefault((label, kind), []).append(point)
    places = tuple(part["at"] for part in own)
    values = [y for points in curves.values() for _, y in points]
    values += [y for points in measured.values() for point in points for y in (point.low, point.high)]
    x_axis = charts.axis_of([math.log10(x) for points in curves.values() for x, _ in points], pad=0.0)
    y_axis = charts.axis_of(values, share=metric.percent)
    plots = [
        Plot(label, kind, tuple(points), charts.reference_plot(
            label, kind, [(p.at, p.mean, p.low, p.high) for p in points], curves, places, x_axis, y_axis, metric))
        for (label, kind), points in sorted(measured.items(), key=lambda item: _mean(item[1]))
    ]  # fmt: skip
    known = tuple((curve, tuple(_at(points, place) for place in places)) for curve, points in curves.items())
    return PanelPlots(title, own[0]["axis"], metric, places, known, tuple(plots))


def _points(board: TaskBoard | None, records: Records, at: float, metric: str) -> Iterable[tuple[str, str, Point]]:
    for score in details.shown(board.scores, details.MOST_CURVES) if board else ():
        runs = [item.run.run_id for item in score.row.outcomes if item.value is not None]
        values = [float(records[run]["metrics"][metric]) for run in runs if metric in records[run]["metrics"]]
        if values:
            yield score.label, score.kind, Point(at, sum(values) / len(values), min(values), max(values))


def _mean(points: Sequence[Point]) -> float:
    return sum(point.mean for point in points) / len(points)


def _at(points: Sequence[tuple[float, float]], place: float) -> float | None:
    """The value of a curve at one of its points, or between two of them by its logarithmic axis; None outside."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= place <= x1:
            share = math.log(place / x0) / math.log(x1 / x0)
            return y0 + share * (y1 - y0)
    return None
