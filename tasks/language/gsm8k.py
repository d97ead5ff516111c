"""GSM8K: grade-school word problems with worked solutions (Cobbe et al., 2021, arXiv:2110.14168), for models of a hub.

Another model is another task: a data set in `tasks/datasets.toml` with the model's files at one revision, and a variant
that sets `model_name`, `stop` and `pad`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants, Hints, JudgePrompt, Shots, Solutions, Steps, Verifier
from ...suite.protocols.policy_measures import Measures
from ...suite.protocols.texts import pack, unpack
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_task
from ...suite.seeds import rng
from .pretrained import LINES, PretrainedPolicy, split_by_seed

SHOWN, POOL = 128, 2048
_CALCULATION = re.compile(r"<<[^<>]*>>")
_STRICT = re.compile(r"#### (-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*")
_NUMBER = re.compile(r"-?\$?[0-9][0-9,]*(?:\.[0-9]+)?")


def plain_number(text: str) -> str:
    """A number without commas, currency, and zeros after the point: `$1,200.50` is `1200.5`, `-0` is `0`."""
    digits = text.replace(",", "").replace("$", "")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    whole, _, part = digits.partition(".")
    found = (whole.lstrip("0") or "0") + (f".{part.rstrip('0')}" if part.rstrip("0") else "")
    return found if found == "0" else sign + found


def strict_answer(response: str) -> str | None:
    """The number after `#### ` at the end of a response, which has no such mark before; None on any other form."""
    before, mark, last = response.rpartition("#### ")
    match = _STRICT.fullmatch(mark + last)
    return plain_number(match[1]) if match and "####" not in before else None


def flexible_answer(response: str) -> str | None:
    """The last number anywhere in a response, cut off or not."""
    found = _NUMBER.findall(response.removesuffix(CUT_OFF))
    return plain_number(found[-1]) if found else None


def read_problems(file: Path) -> list[tuple[str, str]]:
    """Questions and worked solutions of a file of JSON lines, without the annotations of the calculator."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row["question"].strip(), _CALCULATION.sub("", row["answer"]).strip()) for row in rows]


@register_task(
    "gsm8k",
    protocol="policy",
    version="2",
    metric="accuracy",
    title="GSM8K by Qwen2.5-0.5B-Instruct with adapters, from 128 worked solutions",
    budget={"currency": "tokens", "limit": 60000000, "wall_seconds": 36000.0, "memory_mb": 32768},
    data=("gsm8k", "qwen25-05b-instruct"),
    grants=("verifier", "answers", "judge", "shots", "attempts", "steps", "solutions"),
    tags=("adapters", "gpu"),
    variants={
        "gsm8k-smol": {
            "title": "GSM8K by SmolLM2-135M-Instruct with adapters, from 128 worked solutions",
            "data": ("gsm8k", "smollm2"),
            "bundle": "gsm8k-smol",
            "set": {"model_name": "smollm2", "gate": (1.9, 2.2)},
        },
    },
)
class GSM8K(PretrainedPolicy):
    """A prompt is the chat template around a problem, its worked response the published solution with `#### 18` last.

    All 1,319 test problems; of the 7,473 for training the seed draws 128 demonstrations and a pool of 2,048. The
    accuracy is that of the strict form, the number after `#### ` at the end; `lenient_accuracy` takes the last number
    of a response, whatever is around it (the `strict-match` and `flexible-extract` of lm-evaluation-harness). A line
    of a response is a step; feedback and further attempts are turns of the same chat. Problems of
    GSM8K are on the web since 2021: what a model has seen of them in its pre-training is unknown.
    """

    model_name: ClassVar[str] = "qwen25-05b-instruct"
    attention: ClassVar[str] = "sdpa"
    system: ClassVar[str] = "Solve the problem step by step. Write the answer as `#### number` in the last line."
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-4, weight_decay=0.0, batch_size=16, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 3
    step_ends: ClassVar[str] = LINES
    max_new: ClassVar[int] = 256
    votes: ClassVar[int] = 8
    rows: ClassVar[int] = 256
    scored_rows: ClassVar[int] = 16

    def read(self, data: Data) -> Bundle:
        """Public array `problems`: packed texts, the test problems first; private `solutions`, packed."""
        test, train = (read_problems(data.file("gsm8k", f"{part}.jsonl")) for part in ("test", "train"))
        known = {question for question, _ in test}
        train = [(question, answer) for question, answer in dict(train).items() if question not in known]
        every = [*test, *train]
        return Bundle(
            public={"problems": pack([question for question, _ in every]), "sizes": np.array([len(test), len(train)])},
            private={"solutions": pack([answer for _, answer in every])},
            facts={"test_problems": len(test), "training_problems": len(train)},
        )

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        tested, trained = bundle.public()["sizes"].tolist()
        others = np.arange(tested, tested + trained)
        shown, pool = split_by_seed(others, rng(seed, "gsm8k", "split"), SHOWN, POOL)
        return Problems(shown, unpack(bundle.private()["solutions"][shown]), pool, np.arange(tested))

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(public["problems"][indices])

    def answer(self, response: str) -> str | None:
        return strict_answer(response)

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(),
            answers=Hints(self.hinted),
            judge=JudgePrompt(self.judge, self.points, self.judgement, self.judgement_tokens),
            shots=Shots(self.preceded),
            attempts=self.attempts(),
            steps=Steps(self.step_ends),
            solutions=Solutions(self.solutions),
        )

    def measures(self) -> Measures:
        return Measures(lenient=flexible_answer)

    def hinted(self, prompt: str, answer: str) -> str:
        """The answer in brackets after the last question mark."""
        before, mark, after = prompt.rpartition("?")
        return f"{before}? (The answer is {answer}.){after}" if mark else prompt

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [strict_answer(text) or "" for text in self.solutions(private, indices)]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(private["solutions"][indices])
