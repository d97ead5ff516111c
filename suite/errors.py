"""Errors that say what was wrong, where, and what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SelfbenchError(Exception):
    """Base of all errors that the command line prints without a traceback and turns into exit code 2."""


class UsageError(SelfbenchError):
    """A name, file or value that the user gave cannot be used."""


class DataMissing(SelfbenchError):
    """A data set is not on this machine; the message names the file, the place and the command."""


class GateError(SelfbenchError):
    """A source model's measured clean score is off its declared value."""


class RecordError(SelfbenchError):
    """A record file is torn, altered or of an unknown schema."""


class MethodError(SelfbenchError):
    """A method broke the contract of its protocol (shape, finiteness, going on after the end)."""


class BudgetExhausted(Exception):
    """The primary currency of the run's budget is used up; the protocol's loop ends the run cleanly."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
