"""The need `verifier`: verdicts on answers to prompts of the pool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verifier:
    """The scorer says whether answers are right, as the task's `accepts` does.

    `verdicts` is how many different answers to one prompt it judges in a run: too few to find the answer by asking.
    """

    verdicts: int = 64
