"""Charts as inline SVG, drawn when the site is built.

Coordinates are percentages where a chart must fit any width, so that dots stay round and text keeps its size; lines
live in a nested SVG that stretches. Colours come from the style sheet by class. Every chart says in `<title>` and
`<desc>` what it shows.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from ..board import formats
from ..board.ranking import Rank
from ..board.scores import Score, TaskBoard
from ..metrics import Metric

FAR = 3.0


@dataclass(frozen=True)
class Axis:
    """A linear scale with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The position of `value` in per cent, kept inside the axis."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)


def axis_of(values: Iterable[float], ticks: int = 4, share: bool = False, pad: float = 0.05) -> Axis:
    """An axis around `values` with about `ticks` ticks at steps of 1, 2 or 5; within [0, 1] for shares."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = (high - low or abs(high) or 1.0) * pad
    low, high = low - room, high + room
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
        if high <= low:
            low, high = max(low - 0.01, 0.0), min(high + 0.01, 1.0)
    step = 10 ** math.floor(math.log10((high - low) / ticks))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= ticks)
    first = math.ceil(low / step - 1e-9)
    marks = (round(step * at, 12) for at in range(first, first + ticks + 2))
    return Axis(low, high, tuple(mark for mark in marks if mark <= high + 1e-12))


def tick_text(value: float, metric: Metric) -> str:
    scaled = 100 * value if metric.percent else value
    return f"{scaled:g}".replace("-", formats.MINUS)


def board_axis(board: TaskBoard) -> Axis:
    """The axis of one task's board: around the rows near the best one, so that a far row cannot flatten the others.

    A row further from the best than `FAR` times the median row is left out and drawn as an arrow at the edge.
    """
    rows = [score for score in board.scores if score.mean is not None]
    start = (board.best.mean if board.best else None) or (rows[0].mean if rows else None) or 0.0
    distances = sorted(abs((score.mean or 0.0) - start) for score in rows)
    reach = FAR * distances[len(distances) // 2] if distances else 0.0
    values: list[float] = []
    for score in rows:
        if not reach or abs((score.mean or 0.0) - start) <= reach:
            values.extend(float(value) for value in score.row.values)
            values.extend(score.interval or ())
    if board.mde and board.best:
        values.append(start + (board.mde if board.field.metric.better == "lower" else -board.mde))
    return axis_of(values, share=board.field.metric.percent)


def scale(axis: Axis, metric: Metric) -> Markup:
    """The head of a column of `forest` cells: the tick labels."""
    texts = "".join(
        f'<text x="{axis.at(tick)}%" y="11">{escape(tick_text(tick, metric))}</text>'
        for tick in axis.ticks
        if 2 < axis.at(tick) < 98
    )
    return Markup(f'<svg class="scale" aria-hidden="true">{texts}</svg>')


def forest(score: Score, board: TaskBoard, axis: Axis) -> Markup:
    """One row: the interval as a bar, the mean as a mark, seeds as faint dots, undetectable gaps as a band."""
    metric, mean = board.field.metric, score.mean
    parts = [f'<line class="g" x1="{axis.at(t)}%" x2="{axis.at(t)}%" y1="0" y2="100%"/>' for t in axis.ticks]
    best = board.best
    if board.mde and best and best.rank_mean is not None:
        away = board.mde if metric.better == "lower" else -board.mde
        ends = sorted((axis.at(best.rank_mean), axis.at(best.rank_mean + away)))
        parts.append(f'<rect class="m" x="{ends[0]}%" width="{round(ends[1] - ends[0], 2)}%" y="0" height="100%"/>')
    if mean is None:
        return Markup(f'<svg class="forest" aria-hidden="true">{"".join(parts)}</svg>')
    if axis.low <= mean <= axis.high:
        if score.interval:
            low, high = axis.at(score.interval.low), axis.at(score.interval.high)
            parts.append(f'<line class="i" x1="{low}%" x2="{high}%" y1="50%" y2="50%"/>')
        parts += [f'<circle class="s" cx="{axis.at(float(value))}%" cy="50%" r="2"/>' for value in score.row.values]
        parts.append(_mark(score.kind, axis.at(mean)))
    else:
        arrow = "M-5-4 1 0-5 4" if mean > axis.high else "M5-4-1 0 5 4"
        parts.append(f'<svg class="o" x="{axis.at(mean)}%" y="50%"><path d="{arrow}"/></svg>')
    text = f"{score.label}: mean {formats.number(mean, metric)}{formats.unit(metric)}"
    if score.interval:
        text += f", 95 % interval {formats.between(score.interval, metric)}"
    return Markup(f'<svg class="forest k-{score.kind}" role="img"><title>{escape(text)}</title>{"".join(parts)}</svg>')


def _mark(kind: str, at: float) -> str:
    if kind == "upper-bound":
        return f'<svg class="d" x="{at}%" y="50%"><path d="M0-5.5 5.5 0 0 5.5-5.5 0Z"/></svg>'
    return f'<circle class="d" cx="{at}%" cy="50%" r="4.2"/>'


def strip(rank: Rank, size: int) -> Markup:
    """A rank interval as the places it covers out of `size`."""
    width = 100 / size
    text = f"rank {rank} of {size}"
    return Markup(
        f'<svg class="strip" aria-hidden="true"><title>{escape(text)}</title>'
        f'<rect class="t" width="100%" height="100%"/>'
        f'<rect class="r" x="{round(width * (rank.low - 1), 2)}%" '
        f'width="{round(width * (rank.high - rank.low + 1), 2)}%" height="100%"/></svg>'
    )


class Curve(NamedTuple):
    """A line over points x with the range low to high around it."""

    name: str
    kind: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    curve: Curve
    svg: Markup


def panels(curves: Sequence[Curve], metric: Metric, key: str) -> tuple[Markup, list[Panel]]:
    """Small multiples: one panel per curve, all others in grey behind it. Returns shared shapes and the panels."""
    x_axis = axis_of([x for curve in curves for x in curve.x], pad=0.0)
    y_axis = axis_of([y for curve in curves for y in (*curve.low, *curve.high)], share=metric.percent)
    lines = "".join(f'<path d="{_line(curve.x, curve.mean, x_axis, y_axis)}"/>' for curve in curves)
    shared = Markup(
        '<svg class="defs" width="0" height="0" aria-hidden="true">'
        f'<defs><g id="{escape(key)}" class="others">{lines}</g></defs></svg>'
    )
    drawn = []
    for curve in curves:
        text = (
            f"{metric.title} from {formats.number(curve.mean[0], metric)} at the first point to "
            f"{formats.number(curve.mean[-1], metric)} at the last; the band spans the seeds"
        )
        inner = (
            f'<use href="#{escape(key)}"/>'
            f'<path class="band" d="{_band(curve, x_axis, y_axis)}"/>'
            f'<path class="own" d="{_line(curve.x, curve.mean, x_axis, y_axis)}"/>'
        )
        drawn.append(Panel(curve, _plot(inner, curve.name, text, y_axis, metric, f"panel k-{curve.kind}")))
    return shared, drawn


def run_chart(x: Sequence[float], series: Sequence[tuple[str, Sequence[float]]], metric: Metric) -> Markup:
    """The curves of one run: the first series in front, further ones dashed."""
    x_axis = axis_of(x, pad=0.0)
    y_axis = axis_of([value for _, values in series for value in values], share=metric.percent)
    inner = "".join(
        f'<path class="own{" dashed" if at else ""}" d="{_line(x, values, x_axis, y_axis)}"/>'
        for at, (_, values) in reversed(list(enumerate(series)))
    )
    name, values = series[0]
    text = f"From {formats.number(values[0], metric)} to {formats.number(values[-1], metric)}"
    return _plot(inner, f"{name} along the run", text, y_axis, metric, "plot")


def reference_plot(
    name: str,
    kind: str,
    points: Sequence[tuple[float, float, float, float]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    places: Sequence[float],
    x_axis: Axis,
    y_axis: Axis,
    metric: Metric,
) -> Markup:
    """One method's points (x, mean, low, high) over a logarithmic axis, before known curves, each in its own stroke.

    `x_axis` is one of logarithms to the base of ten; `places` get their labels.
    """
    inner = ""
    for number, known in enumerate(curves.values()):
        line = _line([math.log10(x) for x, _ in known], [y for _, y in known], x_axis, y_axis)
        inner += f'<path class="ref r{number}" d="{line}"/>'
    logs = [math.log10(x) for x, *_ in points]
    inner += f'<path class="own" d="{_line(logs, [point[1] for point in points], x_axis, y_axis)}"/>'
    marks = ""
    for x, (_, mean, low, high) in zip(logs, points, strict=True):
        at = f"{x_axis.at(x)}%"
        marks += (
            f'<line class="i" x1="{at}" x2="{at}" y1="{_down(y_axis, low)}%" y2="{_down(y_axis, high)}%"/>'
            f'<circle class="d" cx="{at}" cy="{_down(y_axis, mean)}%" r="3.6"/>'
        )
    labels = "".join(
        f'<text class="x" x="{x_axis.at(math.log10(place))}%" y="100%" dy="14">{place:,.0f}</text>' for place in places
    )
    told = "; ".join(f"{x:,.0f}: {formats.number(mean, metric)}" for x, mean, *_ in points)
    text = f"{metric.title} at {told}; bars span the seeds"
    return _plot(inner, name, text, y_axis, metric, f"panel refs k-{kind}", marks + labels)


def _plot(inner: str, title: str, text: str, y_axis: Axis, metric: Metric, classes: str, marks: str = "") -> Markup:
    grid = "".join(
        f'<line class="g" x1="0" x2="100%" y1="{_down(y_axis, tick)}%" y2="{_down(y_axis, tick)}%"/>'
        for tick in y_axis.ticks
    )
    labels = "".join(
        f'<text x="0" y="{_down(y_axis, tick)}%" dy="-3">{escape(tick_text(tick, metric))}</text>'
        for tick in y_axis.ticks
        if _down(y_axis, tick) > 9
    )
    return Markup(
        f'<svg class="{classes}" role="img"><title>{escape(title)}</title><desc>{escape(text)}</desc>{grid}'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{inner}</svg>'
        f"{marks}{labels}</svg>"
    )


def _down(axis: Axis, value: float) -> float:
    return round(100 - axis.at(value), 2)


def _line(x: Sequence[float], y: Sequence[float], x_axis: Axis, y_axis: Axis) -> str:
    """A path through points that lie on the axes, in thousandths; written for speed, as every run has one or two."""
    across = 1000 / (x_axis.high - x_axis.low)
    up = 1000 / (y_axis.high - y_axis.low)
    left, top = x_axis.low, y_axis.high
    points = [f"{int((a - left) * across)} {int((top - b) * up)}" for a, b in zip(x, y, strict=True)]
    return "M" + "L".join(points)


def _band(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    there = _line(curve.x, curve.low, x_axis, y_axis)
    back = _line(curve.x[::-1], curve.high[::-1], x_axis, y_axis)
    return f"{there}L{back[1:]}Z"


def heat_steps(values: Iterable[float]) -> Callable[[float], int]:
    """A function from a value to one of ten tints: the tenth of all `values` it falls into, 0 the lowest.

    Tenths in place of equal steps, so that one far row does not leave all others without a tint.
    """
    known = sorted(values)
    return lambda value: min(10 * bisect.bisect_left(known, value) // len(known), 9)
