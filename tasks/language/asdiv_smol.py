"""ASDiv: word problems to equations by SmolLM2-135M-Instruct with adapters (Miao et al., ACL 2020, arXiv:2106.15772).

The model writes the equation, the harness computes it: what is learned is to read a problem, not to calculate. An
earlier measurement found that verified self-training gains nothing here, where supervised formulas gain much: a
control on methods that claim a gain everywhere.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants, Hints, JudgePrompt, Shots, Solutions, Verifier
from ...suite.protocols.texts import pack, unpack
from ...suite.registry import register_task
from ...suite.seeds import rng
from .equations import value
from .pretrained import PretrainedPolicy, split_by_seed

TEST, SHOWN, POOL = 256, 128, 512
MOST_WORDS, LONGEST_EQUATION = 40, 18
DATA_SEED = 0
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class WordProblem(NamedTuple):
    text: str
    equation: str
    answer: str


@register_task(
    "asdiv-smol",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="ASDiv word problems to equations by SmolLM2-135M with adapters, from 128 worked ones",
    budget={"currency": "tokens", "limit": 1000000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("smollm2", "asdiv"),
    grants=("verifier", "answers", "judge", "shots", "solutions"),
    tags=("adapters",),
)
class ASDivSmol(PretrainedPolicy):
    """A prompt is the chat template around a problem of at most 40 words, its worked response `7+2`.

    Of the 2,305 problems those count whose formula is one equation of numbers, + - * / and brackets that gives their
    answer, in at most 18 characters. Of problems that differ in digits alone one is kept. 256 are for the test, the
    same for all seeds; of the others the seed draws 128 demonstrations and a pool of 512. A response counts when it is
    such an expression to the last character, with an operation, of the right value. The first policy has been
    fine-tuned on the demonstrations; there is one round.
    """

    system: ClassVar[str] = "Write the equation."
    gate: ClassVar[tuple[float, float]] = (1.9, 2.2)
    first_epochs: ClassVar[int] = 8
    rounds: ClassVar[int] = 1
    max_new: ClassVar[int] = 20
    votes: ClassVar[int] = 4
    rows: ClassVar[int] = 128
    scored_rows: ClassVar[int] = 32

    def read(self, data: Data) -> Bundle:
        """Public array `problems`: packed texts; private `equations` and `values`, packed."""
        found = read_problems(data.file("asdiv", "ASDiv.xml"))
        order = rng(DATA_SEED, "asdiv-smol", "order").permutation(len(found))
        chosen = [found[at] for at in order.tolist()]
        return Bundle(
            public={"problems": pack([one.text for one in chosen])},
            private={
                "equations": pack([one.equation for one in chosen]),
                "values": pack([one.answer for one in chosen]),
            },
            facts={"problems": len(chosen)},
        )

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        equations = bundle.private()["equations"]
        others = np.arange(TEST, len(equations))
        shown, pool = split_by_seed(others, rng(seed, "asdiv-smol", "split"), SHOWN, POOL)
        return Problems(shown, unpack(equations[shown]), pool, np.arange(TEST))

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(public["problems"][indices])

    def answer(self, response: str) -> str | None:
        found = value(response)
        return None if found is None else str(found)

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(32),
            answers=Hints(self.hinted),
            judge=JudgePrompt(self.judge, self.points, self.judgement, self.judgement_tokens),
            shots=Shots(self.preceded),
            solutions=Solutions(self.solutions),
        )

    def hinted(self, prompt: str, answer: str) -> str:
        """The answer in brackets after the last question mark, or after the problem where it has none."""
        before, mark, after = prompt.rpartition("?")
        return f"{before}? ({answer}){after}" if mark else prompt

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(private["values"][indices])

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(private["equations"][indices])


def read_problems(file: Path) -> list[WordProblem]:
    """The problems that count, in the file's order."""
    found: dict[str, WordProblem] = {}
    for item in ET.parse(file).getroot().iter("Problem"):
        body, question, formula, answer = (
            " ".join((item.findtext(tag) or "").split()) for tag in ("Body", "Question", "Formula", "Answer")
        )
        text = f"{body} {question}".strip()
        equation, _, result = formula.replace(" ", "").partition("=")
        worth, stated = value(equation), _NUMBER.match(answer.replace(",", ""))
        short = len(text.split()) <= MOST_WORDS and len(equation) <= LONGEST_EQUATION
        if worth is None or stated is None or not result or not short:
            continue
        if abs(float(worth) - float(stated[0])) < 1e-9:
            found.setdefault(_NUMBER.sub("#", text.lower()), WordProblem(text, equation, str(worth)))
    return list(found.values())
