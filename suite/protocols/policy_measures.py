"""What the evaluation of a policy measures beside its greedy accuracy and its votes; all of it off the meter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..bundle import Array


class Cloze(NamedTuple):
    """Prompts (Q,) and the options of each, of which a model means the one that is likeliest to follow."""

    prompts: Sequence[str]
    options: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Forgetting:
    """Further questions after every round, by name: what a policy forgets while it learns.

    `asked(public)`: the questions; `right(private)`: the numbers (Q,) of the right options, called by the scorer alone.
    """

    asked: Callable[[Mapping[str, Array]], Mapping[str, Cloze]]
    right: Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a task has measured; what it leaves out is not.

    `cloze(public, indices)`: the options of the problems `indices`, which are then answered by likelihood in place of
    generation; `forgetting`: further questions; `lenient(response)`: the answer by a second, lenient parser, whose
    accuracy is a column; `groups(prompts)`: kinds of problems by which the accuracy is shown apart, one a prompt.
    """

    cloze: Callable[[Mapping[str, Array], Array], Cloze] | None = None
    forgetting: Forgetting | None = None
    lenient: Callable[[str], str | None] | None = None
    groups: Callable[[Sequence[str]], Sequence[str]] | None = None

    def questions(self, public: Mapping[str, Array], test: Array) -> tuple[Cloze | None, Mapping[str, Cloze]]:
        """What is asked by likelihood: the options of the `test` problems, or None, and the further questions."""
        return self.cloze(public, test) if self.cloze else None, self.forgetting.asked(
            public
        ) if self.forgetting else {}
