"""What an engine is: it starts jobs, says which have ended, and stops them. It knows nothing of suites or boards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..job import Job


@dataclass(frozen=True)
class Ended:
    """A job that has ended: its handle, and the exit code of its worker (negative: the signal that killed it)."""

    handle: int
    code: int


class Executor(Protocol):
    """Four calls. `slots` is how many jobs may be under way at once."""

    slots: int

    def submit(self, job: Job) -> int:
        """Start a job; returns its handle."""
        ...

    def poll(self, timeout: float) -> list[Ended]:
        """The jobs that have ended since the last call; waits up to `timeout` seconds for one."""
        ...

    def cancel(self, handle: int) -> None:
        """Kill a job with all of its processes; `poll` reports it as ended."""
        ...

    def close(self) -> None:
        """Kill what is left and free everything."""
        ...
