"""What methods may ask of a policy task: an object for each need that it grants, under the name of the need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import get_args, get_type_hints

from .attempts import Attempts
from .code import Code
from .critique import Critique
from .environment import Environment
from .hints import Hints
from .judge import JudgePrompt
from .references import References
from .shots import Shots
from .solutions import Solutions
from .steps import Steps
from .verifier import Verifier

__all__ = [
    "Attempts",
    "Code",
    "Critique",
    "Environment",
    "Grants",
    "Hints",
    "JudgePrompt",
    "References",
    "Shots",
    "Solutions",
    "Steps",
    "Verifier",
    "mismatch",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grants:
    """What a policy task grants; a need without an object is not granted. The names are those of `suite/needs.py`."""

    verifier: Verifier | None = None
    answers: Hints | None = None
    environment: Environment | None = None
    judge: JudgePrompt | None = None
    references: References | None = None
    shots: Shots | None = None
    attempts: Attempts | None = None
    steps: Steps | None = None
    code: Code | None = None
    solutions: Solutions | None = None

    @property
    def needs(self) -> list[str]:
        """The needs that are granted."""
        return [item.name for item in dataclasses.fields(self) if getattr(self, item.name) is not None]

    @property
    def critique(self) -> Critique | None:
        """The words for judging a response: those of further attempts, else those of the environment."""
        if self.attempts is not None:
            return self.attempts.critique
        return self.environment.critique if self.environment is not None else None


def mismatch(given: Grants, declared: Iterable[str]) -> str:
    """How a task's registration and the objects that it gives do not fit, and what to write; empty where they do."""
    declared, known = tuple(declared), [item.name for item in dataclasses.fields(given)]
    for need in declared:
        if need not in known:
            return f"grants '{need}' in its registration, which no policy task can (they can: {', '.join(known)})."
        if need not in given.needs:
            return (
                f"grants '{need}' in its registration, but its `grants()` gives no object for it: write "
                f"`{need}={_call(need)}` there, or take '{need}' out of the registration."
            )
    for need in given.needs:
        if need not in declared:
            return (
                f"gives `{need}` in its `grants()`, but its registration does not grant it: write "
                f"`grants={(*declared, need)!r}` there, or leave `{need}` out of what `grants()` returns."
            )
    return ""


def _call(need: str) -> str:
    """How the object of a need is made: its class with the arguments that it must have."""
    [kind, _] = get_args(get_type_hints(Grants)[need])
    must = [item.name for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING]
    return f"{kind.__name__}({', '.join(f'{name}=...' for name in must)})"
