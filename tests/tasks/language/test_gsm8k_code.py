"""GSM8K with code: which solutions count, programs and outputs by hand, and what an interpreter makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from selfbench.methods.self_rewarding.code_interpreter import CodeInterpreter
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.protocols.interpreter import Interpreter
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.sandbox import Sandbox, SandboxError
from selfbench.tasks.language.gsm8k_code import GSM8KCode, read_worked, worked

TASK = GSM8KCode()
CLIPS = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24=<<48+24=72>>72 clips."


@pytest.fixture
def interpreter() -> Interpreter:
    try:
        assert Sandbox().means
    except SandboxError as error:
        pytest.skip(f"this kernel cannot hold code: {error}")
    return Interpreter(TASK)


def test_solutions_count_whose_notes_are_right_and_end_with_the_answer() -> None:
    assert worked(CLIPS, "72") == CLIPS
    assert worked("It is 1/2=<<1/2=0.50>>0.50.", "0.5") == "It is 1/2=<<1/2=0.5>>0.50."
    for text, answer in (
        (CLIPS, "24"), ("No note.", "1"), ("<<48/2=25>>", "25"), ("<<10/3=3.33>>", "3.33"), ("<<24=24>>", "24"),
        ("<<2*(3+4)=14>>", "14"), ("<<20*.5=10>>", "10"), ("<<1+1=2>><<1+", "2"), ("<<1+1=2=2>>", "2"),
    ):  # fmt: skip
        assert worked(text, answer) == ""


def test_problems_of_both_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "test": [("How many?", "No note here.\n#### 1,200")],
        "train": [("Clips?", f"{CLIPS}\n#### 72"), ("How many?", "<<1+1=2>>2\n#### 2"), ("Bad?", "One.\n#### 1")],
    }
    for part, own in rows.items():
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in own]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(Data, "file", lambda self, name, member: tmp_path / member)
    bundle = write_bundle(tmp_path / "bundle", TASK.read(Data(tmp_path)))
    public, private = bundle.public(), bundle.private()
    assert public["sizes"].tolist() == [1, 1]
    assert TASK.questions(public, [0, 1]) == ["How many?", "Clips?"]
    assert TASK.answers(private, [0, 1]) == ["1200", "72"]
    assert TASK.solutions(private, [1]) == [CLIPS]


def test_programs_have_a_line_for_every_note() -> None:
    program = TASK.program(CLIPS)
    assert program is not None
    assert program.endswith("\ntold('48/2')\ntold('48+24')")
    # A note that has begun counts where the response was cut off there, and nowhere else.
    begun = CLIPS.partition("72>>")[0]
    assert TASK.program(begun + CUT_OFF) == program
    assert TASK.program(begun) is None
    for bad in ("<<1+1", "1>>2", "<<1+1=2>>3>>", "<<__import__('os')=1>>", "<<1+1=2", "<<=1>>", "<<1\n+1=2>>", "No."):
        assert TASK.program(bad) is None
    assert TASK.program("6*7=" + CUT_OFF) == ""


def test_outputs_are_written_into_notes_that_have_begun() -> None:
    assert TASK.observed("a <<48/2=" + CUT_OFF, "24\n") == "a <<48/2=24>>" + CUT_OFF
    assert TASK.observed("<<1/2=0.5>> b <<48/2=" + CUT_OFF, "0.5\n24\n") == "<<1/2=0.5>> b <<48/2=24>>" + CUT_OFF
    # A sign of equality in the text is no code: the solution goes on behind it.
    assert TASK.observed("48/2=" + CUT_OFF, "") == "48/2=" + CUT_OFF
    for text, output in (("a <<48/2=" + CUT_OFF, "ZeroDivisionError"), ("a <<48/2=", "24"), ("a <<48" + CUT_OFF, "24"),
                         ("a <<48/2=" + CUT_OFF, "")):  # fmt: skip
        assert TASK.observed(text, output) is None


def test_answers_are_what_sympy_computes(interpreter: Interpreter) -> None:
    responses = [
        CLIPS, "<<sqrt(16)+1/3-1/3=9>>", "<<0.1*3=1>>", "<<1/3=0>>", "<<1/0=0>>", "<<x=1>>", "No code.",
        "<<2*3=6>>" + CUT_OFF, "<<2*3=7>>7 pears, so 8.",
    ]  # fmt: skip
    assert interpreter.answers(responses) == ["72", "4", "0.3", "0.333333333333", None, None, None, None, "6"]


def test_every_solution_of_gsm8k_that_counts_gives_its_answer(interpreter: Interpreter) -> None:
    file = Path(os.environ.get("SELFBENCH_DATA", "nowhere")) / "text" / "gsm8k" / "train.jsonl"
    if not file.is_file():
        pytest.skip("needs text/gsm8k/train.jsonl below $SELFBENCH_DATA")
    good = [one for one in read_worked(file) if one.solution]
    assert len(good) == 6060
    some = good[::500]
    assert interpreter.answers([one.solution for one in some]) == [one.answer for one in some]
    assert all(TASK.program(one.solution) for one in good)


def test_the_interpreter_goes_on_with_what_it_computed(interpreter: Interpreter) -> None:
    """A policy that is wrong about every number is told them while it writes."""
    steps = iter(["48/2=", "<<48/2=", "24 and 48+24 = <<48+24=", "72 clips."])

    class Script:
        def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
            if not prompts:
                return []
            more = next(steps)
            return [[begun[0].removesuffix(CUT_OFF) + more + (CUT_OFF if more.endswith("=") else "")]]

    method = CodeInterpreter()
    method.program, method.observed, method.run_code = TASK.program, TASK.observed, interpreter.run
    [[solution]] = method.solve(Script(), ["Clips?"], 1, 0.0)
    assert solution == "48/2=<<48/2=24>>24 and 48+24 = <<48+24=72>>72 clips."
    assert interpreter.answers([solution]) == ["72"]
