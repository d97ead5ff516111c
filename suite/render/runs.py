"""The page of one run; made in worker processes, which read the records from the index file themselves."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from pydantic_core import from_json

from ..board.catalogue import Catalogue
from ..board.formats import slug
from ..board.table import Field
from ..index import read_bodies
from ..metrics import PROBE, metric_of
from . import tables
from .charts import run_chart
from .environment import environment

_CUT = "\x1f"
"""A character that no template holds."""


class Job(NamedTuple):
    """The runs of one row: a page each, linked to the others. `runs` holds (seed, run id, status, suites)."""

    label: str
    method: str
    task: str
    primary: str
    condition: str
    runs: tuple[tuple[int, str, str, tuple[str, ...]], ...]


def jobs_of(fields: Iterable[Field], suites_of: dict[str, tuple[str, ...]]) -> list[Job]:
    return [
        Job(
            row.label,
            row.method,
            field.task,
            field.condition.primary,
            field.condition.text,
            tuple(
                (item.seed, item.run.run_id, item.status, suites_of.get(item.run.run_id, ())) for item in row.outcomes
            ),
        )
        for field in fields
        for row in field.rows
    ]


@dataclass(frozen=True)
class RunPages:
    """Writes run pages from the index file `index` into the folder `out`; picklable, so that workers get a copy."""

    index: Path
    out: Path
    catalogue: Catalogue
    suite_titles: dict[str, str]

    @cached_property
    def _template(self) -> Any:
        return environment().get_template("run.html")

    @cached_property
    def _frame(self) -> list[str]:
        """What stands before, between and after the title and the middle of every page."""
        frame = environment().get_template("run_frame.html")
        return str(frame.render(root="../", section="runs", cut=_CUT)).split(_CUT)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def write(self, jobs: Sequence[Job]) -> int:
        """Write the pages of all runs of `jobs`; returns their number."""
        bodies = read_bodies(self.index, [run[1] for job in jobs for run in job.runs])
        for job in jobs:
            spec = from_json(bodies[job.runs[0][1]])["spec"]
            specification = tables.specification(spec, job.condition)
            for _, run_id, _, suites in job.runs:
                text = self.page(job, from_json(bodies[run_id]), suites, specification)
                with io.FileIO(f"{self.out}/{run_id}.html", "w") as file:
                    file.write(text.encode())
        return len(bodies)

    def page(self, job: Job, record: dict[str, Any], suites: Sequence[str], specification: Markup) -> str:
        metric = metric_of(job.primary)
        chart, series = _chart(record["curve"], job.primary)
        title = escape(f"{job.label} on {job.task}, seed {record['spec']['seed']}")
        middle = self._template.render(
            job=job,
            record=record,
            spec=record["spec"],
            metric=metric,
            title=self.catalogue.task_title(job.task),
            protocol=self.catalogue.protocol(job.task),
            suites=[(name, self.suite_titles[name]) for name in suites],
            metrics=tables.metrics(record["metrics"], record["diagnostics"]),
            cost=tables.cost(record["cost"]),
            domains=tables.domains(record["groups"]),
            specification=specification,
            provenance=tables.provenance(record),
            chart=chart,
            series=series,
            method_page=slug(job.method),
            task_page=slug(job.task),
        )
        before, between, after = self._frame
        return f"{before}{title}{between}{middle}{after}"


def _chart(curve: list[dict[str, Any]], primary: str) -> tuple[Markup | None, list[str]]:
    """The curve of the primary metric, and of a validation score or else a probe that was taken at the same points."""
    points = [point for point in curve if primary in point["values"]]
    if len(points) < 2:
        return None, []
    taken = set.intersection(*(set(point["values"]) for point in points))
    beside = ["validation"] * ("validation" in taken) or sorted(name for name in taken if name.startswith(PROBE))
    names = [primary, *beside[:1]]
    titles = ["Validation" if name == "validation" else metric_of(name).title for name in names]
    lines = [[float(point["values"][name]) for point in points] for name in names]
    chart = run_chart([float(p["x"]) for p in points], list(zip(titles, lines, strict=True)), metric_of(primary))
    return chart, titles
