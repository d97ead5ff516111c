"""The need `attempts`: words for feedback on a response, and for another attempt that sees both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .critique import Critique


@dataclass(frozen=True)
class Attempts:
    """`again(prompt, response, feedback)`: the prompt of another attempt at `prompt` that shows the one before, whole
    or cut off, and feedback on it, which may be an empty text."""

    again: Callable[[str, str, str], str]
    critique: Critique
