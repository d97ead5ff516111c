"""The need `steps`: responses of several steps, for methods that search over them or judge them one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """`ends`: the symbols after which a step ends, the task's `step_ends`; without any there is nothing to grant."""

    ends: str

    def __post_init__(self) -> None:
        if not self.ends:
            raise ValueError("a task grants `steps` when its responses have some: set `step_ends`, or leave it out")
