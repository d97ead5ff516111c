"""The need `shots`: a way of putting worked problems before a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ..policy_examples import Example

Put: TypeAlias = "Callable[[str, Sequence[Example]], str]"


def in_a_row(prompt: str, shots: Sequence[Example], separator: str = "\n\n") -> str:
    """Worked problems and the prompt one after the other, `separator` between them."""
    return separator.join([*(one.prompt + one.response for one in shots), prompt])


@dataclass(frozen=True)
class Shots:
    """`preceded(prompt, shots)`: `prompt` with worked problems before it, in the task's own form; with none, `prompt`.

    A task whose model has no room for a few of them and a response does not grant it, and says so.
    """

    preceded: Put = in_a_row
