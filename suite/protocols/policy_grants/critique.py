"""Words by which a policy judges responses, for the needs that ask it to: `attempts` and `environment`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Critique:
    """A task's words for asking for feedback, giving it, and reading it.

    `critic(prompt, response)`: the prompt that asks for feedback on a response, whole or cut off; `feedback(right)`:
    feedback that says of each step whether it is right; `approves(feedback)`: whether feedback finds nothing wrong,
    None where it is not of that form.
    """

    critic: Callable[[str, str], str]
    feedback: Callable[[Sequence[bool]], str]
    approves: Callable[[str], bool | None]
