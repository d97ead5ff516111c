"""The need `judge`: a prompt by which a policy judges responses in points, and what it says read as a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class JudgePrompt:
    """A task's words for asking a policy how good a response is, in points that add up from 0 to 5.

    `judge(prompt, response)`: the prompt that asks for points for a whole response; `points(judgement)`: those that a
    judgement gives, None where it is not of the form asked for, as one that was cut off is not; `judgement(right)`: a
    worked judgement of a response of which it is known whether each step is right; `max_new`: tokens after which a
    judgement is cut off.
    """

    judge: Callable[[str, str], str]
    points: Callable[[str], float | None]
    judgement: Callable[[Sequence[bool]], str]
    max_new: int
