"""The interpreter of tasks whose responses hold code: it runs in the sandbox, and its output is the answer."""

from __future__ import annotations

from collections.abc import Sequence

from ..sandbox import Ran, Sandbox
from .policy import PolicyTask
from .tokens import CUT_OFF

_MOST_KNOWN = 100_000


class Interpreter:
    """Runs code for one side of a run, and remembers how it ended, for equal code ends equally.

    `asked` counts the snippets, remembered ones too. The sandbox starts with the first of them.
    """

    def __init__(self, task: PolicyTask) -> None:
        self._task, self._code = task, task.grants().code
        self._sandbox = Sandbox(self._code.limits, self._code.packages) if self._code else Sandbox()
        self._known: dict[str, Ran] = {}
        self.asked = 0
        self.has_code = self._code is not None

    def run(self, snippets: Sequence[str]) -> list[Ran]:
        """How each snippet ends; raises `SandboxError` where no code can be run safely."""
        self.asked += len(snippets)
        new = [code for code in dict.fromkeys(snippets) if code not in self._known]
        if len(self._known) + len(new) > _MOST_KNOWN:
            self._known.clear()
            new = list(dict.fromkeys(snippets))
        self._known.update(zip(new, self._sandbox.run(new) if new else [], strict=True))
        return [self._known[code] for code in snippets]

    def answers(self, responses: Sequence[str]) -> list[str | None]:
        """The final answers in responses: of what their code prints, where the task's responses hold code."""
        if self._code is None:
            return [self._task.answer(response) for response in responses]
        programs = [None if text.endswith(CUT_OFF) else self._code.program(text) for text in responses]
        ran = iter(self.run([program for program in programs if program is not None]))
        ends = [next(ran) if program is not None else None for program in programs]
        return [self._task.answer(end.output) if end and end.status == "ok" else None for end in ends]
