"""The one command that repeats a run. `cli/run.py` parses what `repeat_command` writes (tested)."""

from __future__ import annotations

import json
import shlex
from typing import Any

from . import registry
from .errors import UsageError
from .generation import NATIVE
from .spec import RunSpec


def repeat_command(spec: RunSpec, seeds: str = "") -> str:
    """`selfbench run ...` with every field of `spec` that is not the standard one; `seeds` stand for its own."""
    words = ["selfbench", "run", "-t", spec.task.name, "-m", spec.method.name, "-s", seeds or str(spec.seed)]
    preset = _or_empty("task", spec.task.name, lambda entry: entry.options).get("preset", "")
    defaults = _or_empty("method", spec.method.name, lambda entry: entry.params(preset=preset))
    added = _or_empty("method", spec.method.name, lambda entry: entry.added)
    for name, value in {**added, **spec.method.params}.items():
        if defaults.get(name) != value:
            words += ["-p", f"{name}={format_value(value)}"]
    standard = _or_empty("task", spec.task.name, lambda entry: entry.options["budget"])
    fields = spec.budget.model_dump(mode="json")
    assumed = {name: field.default for name, field in type(spec.budget).model_fields.items()}
    for name, value in fields.items():
        if standard.get(name, assumed[name]) != value:
            words += ["--budget", f"{name}={format_value(value)}"]
    if spec.selection != _or_empty("task", spec.task.name, lambda entry: entry.options).get("selection", "last"):
        words += ["--selection", spec.selection]
    words += ["--device", spec.device]
    if spec.precision != "fp32":
        words += ["--precision", spec.precision]
    if spec.threads != 1:
        words += ["--threads", str(spec.threads)]
    if spec.generation != NATIVE:
        words += ["--generation", spec.generation]
    return shlex.join(words)


def _or_empty(kind: registry.Kind, name: str, read: Any) -> dict[str, Any]:
    entry = registry.entries(kind).get(name)
    return dict(read(entry)) if entry else {}


def format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def parse_assignments(items: list[str], option: str) -> dict[str, Any]:
    """`["lr=0.01", "augment=none"]` to `{"lr": 0.01, "augment": "none"}`; values are JSON, else text."""
    result: dict[str, Any] = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or not name:
            raise UsageError(f"{option} takes NAME=VALUE, such as {option} lr=0.01; got '{item}'.")
        try:
            result[name.strip()] = json.loads(text)
        except ValueError:
            result[name.strip()] = text
    return result
