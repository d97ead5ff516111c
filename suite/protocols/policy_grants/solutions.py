"""The need `solutions`: worked responses to prompts of the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...bundle import Array


@dataclass(frozen=True)
class Solutions:
    """`worked(private, indices)` are worked responses to the problems `indices`; called by the scorer alone."""

    worked: Callable[[Mapping[str, Array], Array], Sequence[str]]
