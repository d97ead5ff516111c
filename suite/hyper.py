"""Hyper-parameters as dataclass fields that carry their bounds and their search range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UsageError


def hyper(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: Sequence[Any] | None = None,
    help: str = "",
    added: bool = False,
    asks: Mapping[Any, Sequence[str]] | Sequence[str] = (),
) -> Any:
    """A dataclass field for one hyper-parameter.

    All arguments must be literals: the registry reads them without importing the file. `low` and `high` are
    inclusive bounds and also the search range of tuning (`log` draws it on a log scale); `choices` lists the
    allowed values of a categorical one. `added` marks one that its method got after runs of it were recorded: where it
    has its default it is no part of a run's identity, so that the earlier records stay those of the method.

    `asks` says what values ask of a task beside what the method needs: names of needs, or of the kinds of outputs on
    which they work. Of choices it is a mapping from those that ask for something, of anything else what every value but
    the default asks. Tuning draws no value that the task cannot give.
    """
    rule = {
        "low": low, "high": high, "log": log, "choices": choices, "help": help, "added": added, "asks": asks,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata={"hyper": rule})


def check_value(owner: str, name: str, value: Any, default: Any, rule: Mapping[str, Any]) -> Any:
    """Return `value` converted to the type of `default`, or raise `UsageError` naming the allowed range."""
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise UsageError(
            f"{owner}: hyper-parameter '{name}' must be {kind.__name__}, got {value!r} ({type(value).__name__})."
        )
    choices = rule.get("choices")
    if choices is not None and value not in choices:
        raise UsageError(f"{owner}: '{name}' must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    low, high = rule.get("low"), rule.get("high")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (value != value or (low is not None and value < low) or (high is not None and value > high)):
        raise UsageError(f"{owner}: '{name}' must lie in [{low}, {high}], got {value!r}.")
    return value
