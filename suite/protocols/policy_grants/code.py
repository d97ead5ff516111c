"""The need `code`: an interpreter for the code in responses, in a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...sandbox import Limits


@dataclass(frozen=True)
class Code:
    """Responses hold code, whose output has the answer, whatever the method: the task's `answer` is given the output.

    `program(response)`: the code of a response, whole or cut off at the end of code, as a program, None where it has
    none of the declared form; `observed(response, output)`: a response that was cut off at the end of code with what
    its program printed written behind it, None where it was cut off elsewhere, or the output cannot be written;
    `limits`: what the code of one response may take; `packages`: what it may import beside the standard library, such
    as numpy and sympy, whose versions stand in the record.
    """

    program: Callable[[str], str | None]
    observed: Callable[[str, str], str | None]
    limits: Limits
    packages: tuple[str, ...] = ()
