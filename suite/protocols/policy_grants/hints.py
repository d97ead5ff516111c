"""The need `answers`: the true answers to prompts of the pool, as hints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hints:
    """`hinted(prompt, answer)`: the prompt with the true answer given away, for rationales."""

    hinted: Callable[[str, str], str]
