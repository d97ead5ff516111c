"""What is known of the names in records: titles, protocols, labels of rows. Names that nobody registers still work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .. import registry
from ..registry import Entry
from .rules import CONTROL_FAMILIES, UPPER_BOUND_FAMILIES

UNKNOWN_PROTOCOL = "other"
JUDGE_GATE = "judge-gate"
"""The tag of tasks on which a judge's verdicts are used only after the judge has beaten a heuristic."""
STRONG_VIEWS = "strong-augmentation"
"""The need of methods that train on strong views whatever their hyper-parameters say."""
AUGMENT = "augment"
"""The hyper-parameter that chooses a method's view."""
PAIRS = "pairs"
"""The tag of tasks whose test examples are scored two by two: half as many are independent."""


@dataclass(frozen=True)
class Catalogue:
    """The registered methods and tasks that a board is drawn with."""

    methods: Mapping[str, Entry] = field(default_factory=dict)
    tasks: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def registered(cls) -> Catalogue:
        return cls(registry.entries("method"), registry.entries("task"))

    def protocol(self, task: str) -> str:
        return self.tasks[task].protocol if task in self.tasks else UNKNOWN_PROTOCOL

    def task_title(self, task: str) -> str:
        return str(self.tasks[task].options.get("title", task)) if task in self.tasks else task

    def needs(self, method: str) -> tuple[str, ...]:
        return tuple(self.methods[method].options.get("needs", ())) if method in self.methods else ()

    def ungated(self, method: str, task: str) -> bool:
        """Whether a method is rewarded by its own judge on a task that does not ask first what the judge is worth."""
        if method not in self.methods or task not in self.tasks:
            return False
        own = bool(self.methods[method].options.get("own_judge", False))
        return own and not self._has_tag(task, JUDGE_GATE)

    def view(self, method: str, params: str) -> str:
        """The strongest view that an adaptation method trains on: `none`, `weak` or `strong`; empty for all others.

        A method that cannot do without strong views needs them, one that can leaves the choice to `augment`, and
        all others train on weak ones. `params` is canonical JSON.
        """
        entry = self.methods.get(method)
        if entry is None or entry.protocol != "adaptation":
            return ""
        if STRONG_VIEWS in self.needs(method):
            return "strong"
        default = next((item.default for item in entry.hypers if item.name == AUGMENT), "weak")
        return str(json.loads(params).get(AUGMENT, default))

    def scored_together(self, task: str) -> int:
        """How many test examples of a task make one item of its metric."""
        return 2 if self._has_tag(task, PAIRS) else 1

    def _has_tag(self, task: str, tag: str) -> bool:
        return task in self.tasks and tag in self.tasks[task].options.get("tags", ())

    def kind(self, method: str) -> str:
        """`control`, `upper-bound` or `method`."""
        family = self.methods[method].options.get("family") if method in self.methods else None
        if family in UPPER_BOUND_FAMILIES:
            return "upper-bound"
        return "control" if family in CONTROL_FAMILIES else "method"

    def label(self, method: str, version: str, params: str) -> str:
        """The name of a row: the method, and whatever sets it apart from the registered defaults.

        `params` is canonical JSON. A registered method shows the hyper-parameters that differ from their defaults, and
        its version where it is not the registered one; a method that is not registered shows all of both.
        """
        key = (method, version, params)
        if key not in self._labels:
            self._labels[key] = self._label(method, version, json.loads(params))
        return self._labels[key]

    @cached_property
    def _labels(self) -> dict[tuple[str, str, str], str]:
        return {}

    def _label(self, method: str, version: str, params: Mapping[str, object]) -> str:
        entry = self.methods.get(method)
        name = method if entry is not None and entry.version == version else f"{method}@{version}"
        shown = dict(params)
        if entry is not None:
            defaults = {item.name: item.default for item in entry.hypers}
            shown = {key: value for key, value in params.items() if key not in defaults or defaults[key] != value}
            shown |= {key: None for key in defaults if key not in params and key not in entry.added}
        if not shown:
            return name
        return f"{name}[{', '.join(f'{key}={_value(shown[key])}' for key in sorted(shown))}]"


def _value(value: object) -> str:
    """A hyper-parameter as a person would type it; `?` for one that the record does not know."""
    if value is None:
        return "?"
    return str(value).lower() if isinstance(value, bool) else str(value)
