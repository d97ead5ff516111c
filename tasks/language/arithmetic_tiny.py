"""Two-digit additions by a small language model that has seen 300 worked ones: with a verifier, and without.

Everything is made at run time from a seed, so that nothing can be contaminated. The first policy is part of the task:
its weights were trained once by `train_base` and are kept beside this file, for the same training on another kind of
processor rounds differently.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.pretrain import load_weights, reproducible
from ...suite.protocols.generation import OwnSampler, generate
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import PolicyTask, Problems
from ...suite.protocols.policy_grants import (
    Attempts,
    Critique,
    Grants,
    Hints,
    JudgePrompt,
    Shots,
    Solutions,
    Steps,
    Verifier,
)
from ...suite.protocols.policy_grants.shots import in_a_row
from ...suite.protocols.policy_measures import Measures
from ...suite.protocols.sampling import Sampling
from ...suite.protocols.sequences import join
from ...suite.protocols.tokens import CUT_OFF, CharTokenizer
from ...suite.registry import register_task
from ...suite.seeds import rng
from .small_model import small_llama, train_epochs

if TYPE_CHECKING:
    from ...suite.data import Data

SMALLEST, LARGEST = 10, 99
DEMONSTRATIONS, TEST, POOL = 300, 600, 1000
VOCABULARY = "\0\n0123456789+=?.^"
"""Padding, stop, then what is written: `?` before a hint, `^` after a digit with a carry, `.` after one without."""
RESPONSE = re.compile(r"[0-9][.^][0-9][.^]=([1-9][0-9]{1,2})")
JUDGEMENT = re.compile(r"[.^]{3}=([0-5])")
DATA_SEED = 0
BASE_SEED, BASE_EPOCHS, BASE_BATCH, BASE_LR = 1, 120, 32, 2e-3
WEIGHTS = Path(__file__).parent / "weights" / "arithmetic-tiny.safetensors"
WEIGHTS_SHA256 = "b480b3d7dafe547020865da433882703854cf48da8c435411cf708664c62c565"


class _ArithmeticTiny(PolicyTask):
    """What the two tasks share. A prompt is `47+85=`, its worked response `2^3^=132`: the last digit of the sum first,
    each digit followed by whether it carries, then the sum: three steps.

    The 4,095 sums of two numbers from 10 to 99, of which a sum and its mirror image are one, are divided once: 300
    demonstrations, 600 test problems, and 3,195 others, of which the seed draws a pool of 1,000. A response counts when
    it is of that form to the last character. The first policy, a Llama of two layers with 84,416 parameters, answers
    31 % of the test problems. It has learned its demonstrations to the end (a loss of 6e-4): from a policy that had
    not, 500 more steps of supervised fine-tuning alone gained more than self-training.
    """

    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-3, weight_decay=0.3, beta2=0.99, batch_size=64, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 5
    max_new: ClassVar[int] = 10
    votes: ClassVar[int] = 5
    step_ends: ClassVar[str] = ".^"
    rows: ClassVar[int] = 2048
    clean_error: ClassVar[tuple[float, float]] = (0.68, 0.74)

    def build(self, data: Data) -> Bundle:
        """Public array `terms`: uint8 (4095, 2); private `sums`: uint8 (4095,). Measures the first policy."""
        terms = all_terms()
        model = self.model()
        model.load_state_dict(load_weights(WEIGHTS, WEIGHTS_SHA256))
        test = np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST)
        with reproducible(0):
            sampler = OwnSampler(model.eval(), self.tokenizer(), self.rows)
            found = generate(
                sampler, self.tokenizer(), prompts_of(terms[test]), 1, Sampling(0.0), max_new=self.max_new,
                generator=torch.Generator(),
            )  # fmt: skip
        truth = [str(total) for total in terms[test].sum(axis=1)]
        wrong = [self.answer(response) != right for [response], right in zip(found, truth, strict=True)]
        return Bundle(
            public={"terms": terms.astype(np.uint8)},
            private={"sums": terms.sum(axis=1).astype(np.uint8)},
            model=model.state_dict(),
            facts={"clean_error": float(np.mean(wrong)), "parameters": sum(p.numel() for p in model.parameters())},
        )

    def model(self) -> nn.Module:
        return small_llama(len(VOCABULARY))

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(VOCABULARY)

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        others = np.arange(DEMONSTRATIONS + TEST, len(bundle.public()["terms"]))
        shown = np.arange(DEMONSTRATIONS)
        return Problems(
            demonstrations=shown,
            responses=responses_to(bundle.public()["terms"][shown]),
            pool=np.sort(rng(seed, "arithmetic-tiny", "pool").permutation(others)[:POOL]),
            test=np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST),
        )

    def prompts(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return prompts_of(public["terms"][indices])

    def answer(self, response: str) -> str | None:
        match = RESPONSE.fullmatch(response)
        return match[1] if match else None

    def grants(self) -> Grants:
        critique = Critique(self.critic, self.feedback, self.approves)
        return Grants(
            attempts=Attempts(self.again, critique),
            judge=JudgePrompt(self.judge, self.points, self.judgement, self.max_new),
            shots=Shots(functools.partial(in_a_row, separator="?")),
            steps=Steps(self.step_ends),
            solutions=Solutions(self.solutions),
        )

    def measures(self) -> Measures:
        return Measures(groups=self.groups)

    def hinted(self, prompt: str, answer: str) -> str:
        """`47+85?132=`"""
        return f"{prompt[:-1]}?{answer}="

    def again(self, prompt: str, response: str, feedback: str = "") -> str:
        """`47+85?2^3^=132=`, and with feedback `47+85?2^3^=132?...=`"""
        shown = f"{response.removesuffix(CUT_OFF)}?{feedback}" if feedback else response.removesuffix(CUT_OFF)
        return f"{prompt[:-1]}?{shown}="

    def critic(self, prompt: str, response: str) -> str:
        """`47+85?2^3^=132?`"""
        return f"{prompt[:-1]}?{response.removesuffix(CUT_OFF)}?"

    def feedback(self, right: Sequence[bool]) -> str:
        """A mark a step: `.` where it is right, `^` where it is not."""
        return "".join(".^"[not good] for good in right)

    def approves(self, feedback: str) -> bool | None:
        return "^" not in feedback if re.fullmatch(r"[.^]+", feedback) else None

    def judge(self, prompt: str, response: str) -> str:
        """`47+85?2^3^=132^`"""
        return f"{prompt[:-1]}?{response}^"

    def judgement(self, right: Sequence[bool]) -> str:
        """A mark a step, and the points: one for the form, one a right step, and one where all of them are: `..^=3`."""
        return f"{self.feedback(right)}={1 + sum(right) + all(right)}"

    def points(self, judgement: str) -> float | None:
        match = JUDGEMENT.fullmatch(judgement)
        return float(match[1]) if match else None

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [str(total) for total in private["sums"][indices]]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """Worked out from the terms, which are public here."""
        return responses_to(all_terms()[indices])

    def groups(self, prompts: Sequence[str]) -> list[str]:
        """By the number of carries."""
        names = ("no carry", "one carry", "two carries")
        return [names[carries(*map(int, prompt[:-1].split("+")))] for prompt in prompts]


@register_task(
    "arithmetic-tiny",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by a small language model, with a verifier",
    budget={"currency": "tokens", "limit": 3000000, "wall_seconds": 300.0},
    data=(),
    grants=("verifier", "answers", "judge", "shots", "attempts", "steps", "solutions"),
    bundle="arithmetic-tiny",
)
class ArithmeticTiny(_ArithmeticTiny):
    """A pool of 1,000 prompts and a verifier that tells whether a response's final sum is right."""

    def grants(self) -> Grants:
        return dataclasses.replace(super().grants(), verifier=Verifier(64), answers=Hints(self.hinted))


@register_task(
    "arithmetic-tiny-unverified",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by a small language model, without a verifier",
    budget={"currency": "tokens", "limit": 3000000, "wall_seconds": 300.0},
    data=(),
    grants=("judge", "shots", "attempts", "steps", "solutions"),
    bundle="arithmetic-tiny",
)
class ArithmeticTinyUnverified(_ArithmeticTiny):
    """The same without a verifier: only the policy's agreement with itself, or its own judgement, can help."""


def all_terms() -> Array:
    """int64 (4095, 2): every pair of terms once, in one of its two orders, shuffled; the same for all seeds."""
    draw = rng(DATA_SEED, "arithmetic-tiny", "terms")
    numbers = np.arange(SMALLEST, LARGEST + 1)
    pairs = np.array([(a, b) for a in numbers for b in numbers if a <= b])
    swapped = np.where(draw.integers(0, 2, len(pairs))[:, None] == 1, pairs[:, ::-1], pairs)
    return swapped[draw.permutation(len(pairs))]


def prompts_of(terms: Array) -> list[str]:
    return [f"{a}+{b}=" for a, b in terms.tolist()]


def responses_to(terms: Array) -> list[str]:
    """The worked responses to terms (N, 2)."""
    units = terms[:, 0] % 10 + terms[:, 1] % 10
    tens = terms[:, 0] // 10 + terms[:, 1] // 10 + units // 10
    marks = ".^"
    return [
        f"{unit % 10}{marks[unit // 10]}{ten % 10}{marks[ten // 10]}={10 * ten + unit % 10}"
        for unit, ten in zip(units.astype(int).tolist(), tens.astype(int).tolist(), strict=True)
    ]


def carries(a: int, b: int) -> int:
    """How many of the two digits of a + b carry."""
    unit = a % 10 + b % 10 >= 10
    return unit + (a // 10 + b // 10 + unit >= 10)


def train_base() -> nn.Module:
    """The training that made the kept weights, on the demonstrations alone."""
    task = _ArithmeticTiny()
    terms = all_terms()[:DEMONSTRATIONS]
    sequences = join(task.tokenizer(), prompts_of(terms), responses_to(terms))
    with reproducible(BASE_SEED):
        draw = rng(BASE_SEED, "arithmetic-tiny", "base")
        return train_epochs(task.model(), sequences, task.recipe, BASE_LR, BASE_EPOCHS, BASE_BATCH, draw)
