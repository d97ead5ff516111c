"""Two-digit additions by SmolLM2-135M-Instruct with adapters: a real model, on problems that are made at run time.

The model comes from the package index (a GGUF file of four bits a weight, dequantised once) and has seen additions in
its pre-training, but answers few of these in the strict form; that form, and adding, it learns from a few worked ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants, Hints, JudgePrompt, Shots, Solutions, Verifier
from ...suite.protocols.policy_measures import Measures
from ...suite.registry import register_task
from ...suite.seeds import rng
from .arithmetic_tiny import all_terms, carries
from .pretrained import PretrainedPolicy, split_by_seed

TEST, POOL = 512, 512
MOST_SHOWN = 128
RESPONSE = re.compile(r"[1-9][0-9]{1,2}")
_TERMS = re.compile(r"(\d\d) \+ (\d\d)")


@register_task(
    "addition-smol",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by SmolLM2-135M with adapters, from 64 worked ones",
    budget={"currency": "tokens", "limit": 600000, "wall_seconds": 3600.0, "memory_mb": 6144},
    data=("smollm2",),
    grants=("verifier", "answers", "judge", "shots", "attempts", "solutions"),
    tags=("adapters",),
    bundle="addition-smol",
    variants={
        "addition-smol-128": {
            "title": "Two-digit additions by SmolLM2-135M with adapters, from 128 worked ones",
            "set": {"shown": 128},
        },
    },
)
class AdditionSmol(PretrainedPolicy):
    """A prompt is the chat template around `What is 47 + 85?`, its worked response `132`.

    The 4,095 sums of two numbers from 10 to 99, of which a sum and its mirror image are one, are divided: 512 test
    problems, the same for all seeds; of the others the seed draws a pool of 512 and the demonstrations, of which
    `addition-smol-128` has 128 and all other tasks on these sums 64, the first half of them. A response counts when it
    is a number of two or three digits and nothing else. The model as it was published answers none in this form: the
    first policy has been fine-tuned on the demonstrations.
    """

    system: ClassVar[str] = "Answer with a number."
    gate: ClassVar[tuple[float, float]] = (1.9, 2.2)
    first_epochs: ClassVar[int] = 16
    rounds: ClassVar[int] = 2
    max_new: ClassVar[int] = 5
    votes: ClassVar[int] = 4
    shown: ClassVar[int] = 64

    def read(self, data: Data) -> Bundle:
        """Public array `terms`: uint8 (4095, 2); private `sums`: uint8 (4095,)."""
        terms = all_terms().astype(np.uint8)
        return Bundle(public={"terms": terms}, private={"sums": terms.sum(axis=1).astype(np.uint8)})

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        public = bundle.public()
        others = np.arange(TEST, len(public["terms"]))
        shown, _, pool = split_by_seed(
            others, rng(seed, "addition-smol", "split"), self.shown, MOST_SHOWN - self.shown, POOL
        )
        return Problems(shown, [str(a + b) for a, b in public["terms"][shown].tolist()], pool, np.arange(TEST))

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return [f"What is {a} + {b}?" for a, b in public["terms"][indices].tolist()]

    def answer(self, response: str) -> str | None:
        return response if RESPONSE.fullmatch(response) else None

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(32),
            answers=Hints(self.hinted),
            judge=JudgePrompt(self.judge, self.points, self.judgement, self.judgement_tokens),
            shots=Shots(self.preceded),
            attempts=self.attempts(),
            solutions=Solutions(self.solutions),
        )

    def measures(self) -> Measures:
        return Measures(groups=self.groups)

    def hinted(self, prompt: str, answer: str) -> str:
        """`What is 47 + 85? (132)`"""
        return prompt.replace("?", f"? ({answer})", 1)

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [str(total) for total in private["sums"][indices]]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return self.answers(private, indices)

    def groups(self, prompts: Sequence[str]) -> list[str]:
        """By the number of carries."""
        names = ("no carry", "one carry", "two carries")
        found = [_TERMS.search(prompt) for prompt in prompts]
        return [names[carries(int(match[1]), int(match[2]))] for match in found if match]
