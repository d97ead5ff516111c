"""The interpreter of tasks with code: answers are what code prints, counted, remembered, and refused where unsafe."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import pytest

from selfbench.suite.protocols.interpreter import Interpreter
from selfbench.suite.protocols.policy import PolicyTask
from selfbench.suite.protocols.policy_grants import Code, Grants
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.sandbox import Limits, Sandbox, SandboxError


class Plain(PolicyTask):
    def answer(self, response: str) -> str | None:
        return response if response.isdigit() else None


class Coded(Plain):
    """A response is a program; its answer, digits alone."""

    limits: ClassVar[Limits] = Limits(cpu_seconds=1, wall_seconds=10.0)

    def grants(self) -> Grants:
        return Grants(code=Code(self.program, lambda response, output: None, self.limits))

    def program(self, response: str) -> str | None:
        return response if re.match("[a-z0-9]", response) else None

    def answer(self, response: str) -> str | None:
        return super().answer(response.strip())


class Packed(Coded):
    def grants(self) -> Grants:
        return Grants(code=dataclasses.replace(super().grants().code, packages=("numpy",)))


class Unheld(Coded):
    limits: ClassVar[Limits] = Limits(without=("namespaces", "landlock"))


@pytest.fixture(autouse=True)
def _safe() -> None:
    try:
        assert Sandbox().means
    except SandboxError as error:
        pytest.skip(f"this kernel cannot hold code: {error}")


def test_without_code_no_sandbox_starts() -> None:
    interpreter = Interpreter(Plain())
    assert interpreter.answers(["12", "x", "3" + CUT_OFF]) == ["12", None, None]
    assert interpreter._sandbox._server is None
    assert interpreter.asked == 0


def test_the_answer_is_what_the_code_prints() -> None:
    interpreter = Interpreter(Coded())
    responses = ["print(6 * 7)", "12", "print(1" + CUT_OFF, "print(1)" + CUT_OFF, "1 / 0", "print('x')", "!", "",
                 "print(5)\n1 / 0", "print(5)\nimport os\nos._exit(0)", "print(6 * 7)"]  # fmt: skip
    # Output that was not written when the code left is lost, and so is that of code which failed.
    assert interpreter.answers(responses) == ["42", *[None] * 9, "42"]
    assert interpreter.asked == 7


def test_code_imports_what_its_task_declares() -> None:
    response = "import numpy\nprint(numpy.arange(4).sum())"
    assert Interpreter(Packed()).answers([response]) == ["6"]
    assert Interpreter(Coded()).answers([response]) == [None]


def test_equal_code_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = Interpreter(Coded())
    first = interpreter.run(["print(1)", "print(2)", "print(1)"])
    monkeypatch.setattr(interpreter._sandbox, "run", lambda snippets: pytest.fail(f"ran {snippets}"))
    assert interpreter.run(["print(1)", "print(2)", "print(1)"]) == first
    assert interpreter.asked == 6


def test_where_nothing_holds_code_none_is_run() -> None:
    with pytest.raises(SandboxError, match="is not run here"):
        Interpreter(Unheld()).answers(["print(1)"])
