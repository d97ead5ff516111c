"""GSM8K whose calculations are code: a model writes what is to be computed, an interpreter what comes out.

The worked solutions of GSM8K have notes of a calculator in them, `48/2 = <<48/2=24>>24`, which its authors' models have
computed while they write (Cobbe et al., 2021, arXiv:2110.14168). Here what stands before the sign of equality is code.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.protocols.policy_grants import Code, Grants
from ...suite.protocols.texts import pack, unpack
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_task
from ...suite.sandbox import Limits
from .equations import value
from .gsm8k import GSM8K, plain_number

LIMITS = Limits(cpu_seconds=2, memory_mb=256, output_bytes=1024)
EXPRESSION = re.compile(r"[-+*/(), .0-9a-z]{1,64}")
OUTPUT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_NOTE = re.compile(r"<<([^<>=\n]*)=([^<>=\n]*)>>")
_BEGUN = re.compile(r"<<([^<>=\n]*)=$")
_PRELUDE = """from sympy import sympify
def told(text):
    print(format(float(sympify(text, rational=True)), ".12g"))
"""


class Worked(NamedTuple):
    question: str
    solution: str
    answer: str


@register_task(
    "gsm8k-smol-code",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="GSM8K by SmolLM2-135M-Instruct with adapters, whose calculations an interpreter computes",
    budget={"currency": "tokens", "limit": 60000000, "wall_seconds": 36000.0, "memory_mb": 32768},
    data=("gsm8k", "smollm2"),
    grants=("verifier", "answers", "judge", "shots", "steps", "code", "solutions"),
    tags=("adapters", "gpu"),
)
class GSM8KCode(GSM8K):
    """A worked response is the published solution with the calculator's notes and without its last line.

    What a note computes is an expression that sympy can read, exactly and without rounding; the answer is what the last
    note gives when the harness runs it, whatever the response says. A policy that writes at a stretch has to compute
    the numbers that it goes on with; one that has the interpreter run its code (`code`) has not. All test problems of
    `gsm8k-smol`; of those for training the ones whose notes are right as they stand and end with the answer, 6,060 of
    7,473. `lenient_accuracy` is that of the last number which the response itself says. There is no majority vote, for
    every sample would have to be run.
    """

    model_name: ClassVar[str] = "smollm2"
    gate: ClassVar[tuple[float, float]] = (1.9, 2.2)
    system: ClassVar[str] = "Solve the problem step by step. Write every calculation as `<<48/2=24>>24`."
    votes: ClassVar[int] = 0
    step_ends: ClassVar[str] = "="

    def read(self, data: Data) -> Bundle:
        """Public arrays `problems`, packed texts, the test problems first, and `sizes`; private `solutions` and
        `truths`, packed."""
        test, train = (list(read_worked(data.file("gsm8k", f"{part}.jsonl"))) for part in ("test", "train"))
        known = {one.question for one in test}
        own = {one.question: one for one in train if one.solution and one.question not in known}
        every = [*test, *own.values()]
        return Bundle(
            public={
                "problems": pack([one.question for one in every]),
                "sizes": np.array([len(test), len(own)]),
            },
            private={
                "solutions": pack([one.solution for one in every]),
                "truths": pack([one.answer for one in every]),
            },
            facts={"test_problems": len(test), "training_problems": len(own)},
        )

    def grants(self) -> Grants:
        code = Code(self.program, self.observed, LIMITS, ("sympy",))
        return dataclasses.replace(super().grants(), attempts=None, code=code)

    def program(self, response: str) -> str | None:
        """A line for every note, that of one which has begun too; None where a note is none.

        A response that was cut off before its first note has an empty program: a sign of equality in its text has ended
        a step that is no code.
        """
        text = response.removesuffix(CUT_OFF)
        notes, rest = [note for note, _ in _NOTE.findall(text)], _NOTE.sub("", text)
        if text != response and (begun := _BEGUN.search(rest)):
            notes.append(begun[1])
            rest = rest[: begun.start()]
        if "<<" in rest or ">>" in rest or not all(EXPRESSION.fullmatch(note) for note in notes):
            return None
        if not notes:
            return "" if text != response else None
        return _PRELUDE + "\n".join(f"told({note!r})" for note in notes)

    def observed(self, response: str, output: str) -> str | None:
        text = response.removesuffix(CUT_OFF)
        if not response.endswith(f"={CUT_OFF}"):
            return None
        if not _BEGUN.search(text):
            return response
        last = self.answer(output)
        return f"{text}{last}>>{CUT_OFF}" if last else None

    def answer(self, response: str) -> str | None:
        """The last line that a program printed."""
        lines = response.split()
        return plain_number(lines[-1]) if lines and OUTPUT.fullmatch(lines[-1]) else None

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(private["truths"][indices])


def read_worked(file: Path) -> Iterator[Worked]:
    """The problems of a file of JSON lines; a solution is empty where its notes are not what an interpreter makes of
    them, or do not end with the answer."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, _, final = row["answer"].partition("\n#### ")
        answer = plain_number(final.strip())
        yield Worked(row["question"].strip(), worked(text.strip(), answer), answer)


def worked(text: str, answer: str) -> str:
    """A solution whose notes hold what the interpreter prints, empty where that cannot be."""
    notes = _NOTE.findall(text)
    if not notes or text.count("<<") != len(notes):
        return ""
    for note, result in notes:
        found = value(note)
        # A bracket before the sign of equality could be one token with it, and would end no step.
        if found is None or not note[-1].isdigit() or not OUTPUT.fullmatch(result) or Fraction(result) != found:
            return ""
    if plain_number(notes[-1][1]) != answer:
        return ""
    return _NOTE.sub(lambda match: f"<<{match[1]}={plain_number(match[2])}>>", text)
