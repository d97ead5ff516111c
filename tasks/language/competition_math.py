"""MATH: problems of mathematics competitions with worked solutions (Hendrycks et al., 2021, arXiv:2103.03874)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.errors import DataMissing, UsageError
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants, Hints, JudgePrompt, Shots, Solutions, Steps, Verifier
from ...suite.protocols.texts import pack, unpack
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_task
from ...suite.seeds import rng
from .pretrained import LINES, PretrainedPolicy, split_by_seed

SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
TEST, SHOWN, POOL = 500, 128, 2048
DATA_SEED = 0
_MARKS = ("\\boxed", "\\fbox")
_DROPPED = ("\n", "\\!", "\\$", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\%", "%")
_UNITS = re.compile(r"\\text\{ .*$")
_NAMED = re.compile(r"^.{0,2}=(?=.)")
_ROOT = re.compile(r"\\sqrt([^{\[])")
_SLASH = re.compile(r"(-?[0-9]+)/(-?[0-9]+)")


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}` of a text, or after a last `\boxed ` before a `$`.

    None where there is none, or where its brace never closes.
    """
    start, mark = max((text.rfind(mark), mark) for mark in _MARKS)
    if start < 0:
        return None
    rest = text[start + len(mark) :]
    if rest.startswith(" "):
        return rest.partition("$")[0].strip() or None
    depth = 0
    for at, symbol in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(symbol, 0)
        if not depth:
            return rest[1:at] if at else None
    return None


def plain_form(answer: str) -> str:
    r"""One way of writing an answer, as the paper's code compares them: a string, no algebra.

    Space, sizes of brackets, degrees, percent, currency and units (`\text{ ...}` at the end) go; `\dfrac`, `\tfrac` and
    `1/2` become `\frac{1}{2}`, `\frac12` and `\sqrt2` get their braces, `.5` its zero, `x=5` loses its `x=`; 0.5 is
    `\frac{1}{2}`.
    """
    text = answer.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\\\", "\\")
    for mark in _DROPPED:
        text = text.replace(mark, "")
    text = _UNITS.sub("", text).replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    text = _NAMED.sub("", text) if text.count("=") == 1 else text
    text = text.replace(" ", "")
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    text = _with_braces(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    match = _SLASH.fullmatch(text)
    return f"\\frac{{{int(match[1])}}}{{{int(match[2])}}}" if match else text


def _with_braces(text: str) -> str:
    r"""`\frac12` and `\frac1{72}` with braces around both parts; what is no fraction of single symbols stays."""
    first, *parts = text.split("\\frac")
    found = [first]
    for part in parts:
        if not part.startswith("{") and len(part) >= 2:
            above, below = part[0], part[1:]
            part = f"{{{above}}}{below}" if below.startswith("{") else f"{{{above}}}{{{below[0]}}}{below[1:]}"
        found.append(part)
    return "\\frac".join(found)


def read_problems(data: Data, part: str) -> list[tuple[str, str]]:
    """Problems and worked solutions of all rows of a part, `train` or `test`, whose solution has an answer.

    Raises `DataMissing` for a file that is no such table.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet files are read by pyarrow: type `pip install 'selfbench[language]'`.") from None
    found = []
    for subject in SUBJECTS:
        file = data.file("math", f"{subject}/{part}.parquet")
        try:
            rows = parquet.read_table(file, columns=["problem", "solution"]).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataMissing(f"{file} cannot be read as a table of problems ({str(error)[:200]}).") from None
        found += [(row["problem"].strip(), row["solution"].strip()) for row in rows if boxed(row["solution"])]
    return found


@register_task(
    "math",
    protocol="policy",
    version="2",
    metric="accuracy",
    title="MATH by Qwen2.5-0.5B-Instruct with adapters, from 128 worked solutions",
    budget={"currency": "tokens", "limit": 90000000, "wall_seconds": 36000.0, "memory_mb": 32768},
    data=("math", "qwen25-05b-instruct"),
    grants=("verifier", "answers", "judge", "shots", "attempts", "steps", "solutions"),
    tags=("adapters", "gpu"),
)
class CompetitionMath(PretrainedPolicy):
    r"""A prompt is the chat template around a problem, its worked response the published solution.

    500 of the 5,000 test problems, the same for all seeds; of the 7,500 for training the seed draws 128 demonstrations
    and a pool of 2,048. The answer of a response is what its last `\boxed{...}` holds, in one way of writing
    (`plain_form`); a response that was cut off has none. A line of a response is a step; feedback and further attempts
    are turns of the same chat. The problems are on the web since 2021: what a model has seen of them in its
    pre-training is unknown.
    """

    model_name: ClassVar[str] = "qwen25-05b-instruct"
    attention: ClassVar[str] = "sdpa"
    system: ClassVar[str] = "Solve the problem step by step. Put the final answer into \\boxed{}."
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-4, weight_decay=0.0, batch_size=16, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 3
    step_ends: ClassVar[str] = LINES
    max_new: ClassVar[int] = 512
    votes: ClassVar[int] = 4
    rows: ClassVar[int] = 256
    scored_rows: ClassVar[int] = 8

    def read(self, data: Data) -> Bundle:
        """Public arrays `problems`, packed, the test problems first, and `tested`; private `solutions`, packed."""
        test, train = (read_problems(data, part) for part in ("test", "train"))
        chosen = [test[at] for at in rng(DATA_SEED, "math", "order").permutation(len(test))[:TEST].tolist()]
        known = {problem for problem, _ in chosen}
        others = [(problem, solution) for problem, solution in dict(train).items() if problem not in known]
        problems, solutions = zip(*chosen, *others, strict=True)
        return Bundle(
            public={"problems": pack(problems), "tested": np.array([len(chosen), len(others)])},
            private={"solutions": pack(solutions)},
            facts={"test_problems": len(chosen), "training_problems": len(others)},
        )

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        tested, trained = bundle.public()["tested"].tolist()
        others = np.arange(tested, tested + trained)
        shown, pool = split_by_seed(others, rng(seed, "math", "split"), SHOWN, POOL)
        return Problems(shown, unpack(bundle.private()["solutions"][shown]), pool, np.arange(tested))

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(public["problems"][indices])

    def answer(self, response: str) -> str | None:
        found = None if response.endswith(CUT_OFF) else boxed(response)
        return plain_form(found) if found is not None else None

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

    def hinted(self, prompt: str, answer: str) -> str:
        """The answer in brackets at the end of the problem, before the symbol that ends the user's words."""
        before, mark, after = prompt.rpartition(self.stop)
        return f"{before} (The answer is {answer}.){mark}{after}"

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [self.answer(text) or "" for text in self.solutions(private, indices)]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(private["solutions"][indices])
