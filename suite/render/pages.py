"""All pages but those of single runs: contexts for the templates of `site/templates`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup
from pydantic_core import from_json

from ..board import rules
from ..board.catalogue import UNKNOWN_PROTOCOL, Catalogue
from ..board.example import worked_example
from ..board.export import board_data, boards_csv, json_text, suite_data
from ..board.formats import compact, slug
from ..board.scores import Score, TaskBoard
from ..board.suites import SuiteBoard
from ..data_facts import sentences
from ..index import Summary, read_bodies
from ..metrics import metric_of
from ..needs import NEEDS
from ..registry import Entry
from . import charts, details, references, tables
from .environment import environment

RUNS_PER_PAGE = 500
_ALONG = {"stream": "images", "policy": "rounds"}
"""What the x axis of curves counts, where it is not the budget."""
MOST_LOOSE = 100
"""Rows outside of all suites that one page shows, best first; the CSV beside it holds all."""


class Page(NamedTuple):
    """A file of the site: its path below the root, and its text."""

    path: str
    text: str


@dataclass(frozen=True)
class Facts:
    """Numbers about the whole site, on its first page and in every footer."""

    runs: int
    failed: int
    fingerprint: str


@dataclass(frozen=True)
class TaskView:
    """A task with its board in every suite, and its runs outside of all suites."""

    name: str
    title: str
    protocol: str
    entry: Entry | None
    boards: tuple[tuple[SuiteBoard, TaskBoard], ...]
    loose: tuple[TaskBoard, ...]

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """Finished or failed runs, each once."""
        every = [*(board for _, board in self.boards), *self.loose]
        runs = (o.run for b in every for s in b.scores for o in s.row.outcomes if o.status != "missing")
        return tuple({run.run_id: run for run in runs}.values())

    @property
    def runs(self) -> int:
        return len(self.summaries)


class Place(NamedTuple):
    """Where a method stands: its score on one board, of a suite or of none."""

    suite: SuiteBoard | None
    board: TaskBoard
    score: Score


@dataclass(frozen=True)
class MethodView:
    name: str
    entry: Entry | None
    kind: str
    places: tuple[Place, ...]

    @property
    def ranked(self) -> list[Place]:
        """The places in suites."""
        return [place for place in self.places if place.suite]

    @property
    def loose(self) -> list[Place]:
        """The places outside of all suites."""
        return [place for place in self.places if not place.suite]

    @property
    def protocol(self) -> str:
        return self.entry.protocol if self.entry else UNKNOWN_PROTOCOL

    @property
    def paper(self) -> str:
        return str(self.entry.options.get("paper", "-")) if self.entry else "-"


@dataclass(frozen=True)
class Pages:
    """Renders pages from boards; yields their texts and touches no file."""

    catalogue: Catalogue
    suites: Sequence[SuiteBoard]
    tasks: Sequence[TaskView]
    methods: Sequence[MethodView]
    facts: Facts
    index: Path

    @cached_property
    def _env(self) -> Environment:
        env = environment()
        env.globals.update(
            catalogue=self.catalogue, facts=self.facts, rules=rules, needs_text=NEEDS, most_loose=MOST_LOOSE
        )
        return env

    def _page(self, path: str, template: str, section: str, **context: Any) -> Page:
        root = "../" * path.count("/")
        text = self._env.get_template(template).render(root=root, section=section, **context)
        return Page(path, text)

    def all(self) -> Iterator[Page]:
        yield self._page(
            "index.html", "index.html", "board", suites=self.suites, tasks=self.tasks, methods=self.methods
        )
        yield self._page("rules.html", "rules.html", "rules", example=worked_example())
        yield self._page("tasks/index.html", "tasks.html", "tasks", tasks=self.tasks)
        yield self._page("methods/index.html", "methods.html", "methods", methods=self.methods)
        for suite in self.suites:
            yield from self._suite(suite)
        for task in self.tasks:
            yield from self._task(task)
        for method in self.methods:
            path = f"methods/{slug(method.name)}.html"
            yield self._page(path, "method.html", "methods", method=method, doc=paragraphs(method.entry))

    def _suite(self, suite: SuiteBoard) -> Iterator[Page]:
        name = slug(suite.name)
        yield self._page(f"suites/{name}.html", "suite.html", "board", suite=suite)
        yield Page(f"data/suite-{name}.csv", boards_csv(suite.tasks))
        yield Page(f"data/suite-{name}.json", json_text(suite_data(suite)))

    def _task(self, task: TaskView) -> Iterator[Page]:
        name = slug(task.name)
        sections = [
            {"suite": suite, "board": board, **self._details(board, f"curves{at}")}
            for at, (suite, board) in enumerate(task.boards)
        ]
        path, known = f"tasks/{name}.html", self._references(task)
        prepared = max((section["prepared"] for section in sections), default=0.0)
        said = [self._facts_of_data[run.bundle] for run in task.summaries if run.bundle in self._facts_of_data]
        yield self._page(
            path,
            "task.html",
            "tasks",
            task=task,
            sections=sections,
            doc=paragraphs(task.entry),
            references=known,
            prepared=prepared,
            data_facts=sentences(said[-1] if said else {}),
            correlation=self._correlation(task, sections),
        )
        boards = [*(board for _, board in task.boards), *task.loose]
        yield Page(f"data/task-{name}.csv", boards_csv(boards))
        yield Page(f"data/task-{name}.json", json_text([board_data(board) for board in boards]))

    def _correlation(self, task: TaskView, sections: Sequence[Mapping[str, Any]]) -> float | None:
        """The label correlation of a stream, as runs in suites say it, or those outside of all."""
        said = [section["correlation"] for section in sections if section["correlation"] is not None]
        if said or self.catalogue.protocol(task.name) != "stream":
            return said[0] if said else None
        wanted = [run for board in task.loose for run in details.wanted(board)]
        return details.label_correlation(map(from_json, read_bodies(self.index, wanted).values()))

    @cached_property
    def _facts_of_data(self) -> dict[str, dict[str, float]]:
        """Digest of data -> what is said of it by records on it, of any task: earlier ones said nothing."""
        runs = (run for task in self.tasks for run in task.summaries if run.data_facts)
        return {run.bundle: from_json(run.data_facts) for run in runs}

    def _references(self, task: TaskView) -> list[references.PanelPlots]:
        """The plots of the task's family beside what is known of it; none where the task declares none."""
        declared = task.entry.options.get("references") if task.entry else None
        if not declared:
            return []
        options = {name: entry.options for name, entry in self.catalogue.tasks.items()}
        names = set(references.members(options, declared["family"]))
        views = [view for view in self.tasks if view.name in names]
        boards = {view.name: board for view in views for board in [*(b for _, b in view.boards), *view.loose][:1]}
        wanted = [run for board in boards.values() for run in details.wanted(board)]
        records = {name: from_json(body) for name, body in read_bodies(self.index, wanted).items()}
        return references.panel_plots(options, boards, records, declared["family"])

    def _details(self, board: TaskBoard, key: str) -> dict[str, Any]:
        metric = board.field.metric
        records = {name: from_json(body) for name, body in read_bodies(self.index, details.wanted(board)).items()}
        curves = details.curves(board, records)
        shared, panels = charts.panels(curves, metric, key) if curves else (Markup(""), [])
        probes: list[dict[str, Any]] = []
        for name in details.probes(records):
            if asked := details.curves(board, records, name):
                drawn = charts.panels(asked, metric_of(name), f"{key}-{len(probes)}")
                probes.append({"metric": metric_of(name), "shared": drawn[0], "panels": drawn[1]})
        entry = self.catalogue.tasks.get(board.field.task)
        span, labels = "", entry is not None and "active-learning" in entry.options["tags"]
        if curves:
            what = "labels" if labels else _ALONG.get(self.catalogue.protocol(board.field.task), "spent")
            span = f"from {compact(min(c.x[0] for c in curves))} to {compact(max(c.x[-1] for c in curves))} {what}"
        return {
            "shared": shared,
            "panels": panels,
            "probes": probes,
            "span": span,
            "over_labels": labels,
            "prepared": max((r["cost"].get("preparation_seconds", 0.0) for r in records.values()), default=0.0),
            "correlation": details.label_correlation(records.values()),
            "heat": details.heat(board, records, metric),
            "tokens": details.tokens(board, records),
            "others": details.other_metrics(board, records),
        }

    def runs(self, runs: Sequence[Summary], labels: Mapping[str, str], suites_of: Mapping[str, Any]) -> Iterator[Page]:
        """The list of all runs, `RUNS_PER_PAGE` to a page."""
        last = max((len(runs) + RUNS_PER_PAGE - 1) // RUNS_PER_PAGE, 1)
        for number in range(1, last + 1):
            chunk = runs[(number - 1) * RUNS_PER_PAGE : number * RUNS_PER_PAGE]
            yield self._page(
                run_page(number),
                "runs.html",
                "runs",
                rows=tables.listing((run, labels[run.run_id], suites_of.get(run.run_id, ())) for run in chunk),
                shown=len(chunk),
                number=number,
                last=last,
                first_row=(number - 1) * RUNS_PER_PAGE + 1,
                run_page=run_page,
            )


def run_page(number: int) -> str:
    return "runs/index.html" if number == 1 else f"runs/page-{number}.html"


def task_views(catalogue: Catalogue, suites: Sequence[SuiteBoard], loose: Iterable[TaskBoard]) -> list[TaskView]:
    """Every task that has a record or is part of a suite, and every registered one, by protocol and name."""
    outside: dict[str, list[TaskBoard]] = {}
    for board in loose:
        outside.setdefault(board.field.task, []).append(board)
    inside: dict[str, list[tuple[SuiteBoard, TaskBoard]]] = {}
    for suite in suites:
        for board in suite.tasks:
            inside.setdefault(board.field.task, []).append((suite, board))
    views = [
        TaskView(
            name,
            catalogue.task_title(name),
            catalogue.protocol(name),
            catalogue.tasks.get(name),
            tuple(inside.get(name, ())),
            tuple(outside.get(name, ())),
        )
        for name in {*inside, *outside, *catalogue.tasks}
    ]
    return sorted(views, key=lambda view: (view.protocol, view.name))


def method_views(catalogue: Catalogue, suites: Sequence[SuiteBoard], loose: Iterable[TaskBoard]) -> list[MethodView]:
    """Every method with a record, a place in a suite or a registration, by name."""
    places: dict[str, list[Place]] = {}
    boards = [(suite, board) for suite in suites for board in suite.tasks]
    for suite, board in [*boards, *((None, board) for board in loose)]:
        for score in board.scores:
            places.setdefault(score.row.method, []).append(Place(suite, board, score))
    return [
        MethodView(name, catalogue.methods.get(name), catalogue.kind(name), tuple(places.get(name, ())))
        for name in sorted({*places, *catalogue.methods})
    ]


def paragraphs(entry: Entry | None) -> list[tuple[str, str]]:
    """A docstring as (`p` or `pre`, text): indented blocks keep their lines."""
    if entry is None:
        return []
    blocks = [block.strip("\n") for block in entry.doc.split("\n\n") if block.strip()]
    return [("pre", block) if block.startswith((" ", "\t")) else ("p", " ".join(block.split())) for block in blocks]
