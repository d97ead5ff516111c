"""Judging as a task: which of two responses to an addition is right, asked in both orders.

The quality of the responses is known, and the harness, not the model, says how good the judge is. As it was published,
SmolLM2-135M writes sentences in place of verdicts, and of the two letters the first is always the likelier one: such a
judge of places agrees with itself in no pair, and scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants, Hints, Shots, Solutions, Verifier
from ...suite.protocols.policy_measures import Cloze, Measures
from ...suite.registry import register_task
from ...suite.seeds import rng
from .arithmetic_tiny import all_terms
from .pretrained import PretrainedPolicy, split_by_seed

TEST, SHOWN, POOL = 256, 64, 256
"""Pairs of responses; each is two problems, one an order."""
DATA_SEED = 0
ERRORS = (-20, -11, -10, -2, -1, 1, 2, 10, 11, 20)
"""How far wrong responses are off: a digit, a carry, both."""
FIRST, SECOND = "A", "B"


@register_task(
    "judge-smol",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Which of two sums is right: SmolLM2-135M with adapters as a judge, asked in both orders",
    budget={"currency": "tokens", "limit": 1000000, "wall_seconds": 3600.0, "memory_mb": 6144},
    data=("smollm2",),
    grants=("verifier", "answers", "shots", "solutions"),
    tags=("adapters", "pairs"),
    variants={
        "judge-smol-published": {
            "title": "Which of two sums is right: SmolLM2-135M as it was published as a judge, by likelihood",
            "set": {"first_epochs": 0, "votes": 0, "by_likelihood": True},
        },
    },
)
class JudgeSmol(PretrainedPolicy):
    """A prompt is the chat template around `What is 47 + 85? A: 132. B: 142. Which is right?`, its response `A` or `B`.

    Problem 2 i asks about pair i with the right response first, 2 i + 1 with the wrong one first. A verdict counts when
    it is right in both orders: `accuracy` is the share of such pairs, 0 for a judge of places, a quarter for a coin.
    `swap_consistency` is the share of pairs whose two verdicts parse and name the same response. Verdicts that do not
    parse count as wrong, and lower the parse rate. 256 test pairs, the same for all seeds; of the others the seed draws
    64 for demonstrations and 256 for the pool, both orders of each.

    The first policy of `judge-smol-published` is the model as it was published, which judges before it has learned how.
    It writes sentences, so that the verdict there is the letter that is the likelier one, and always one of the two.
    """

    system: ClassVar[str] = "Answer A or B."
    gate: ClassVar[tuple[float, float]] = (1.9, 2.2)
    first_epochs: ClassVar[int] = 8
    rounds: ClassVar[int] = 2
    max_new: ClassVar[int] = 4
    votes: ClassVar[int] = 4
    by_likelihood: ClassVar[bool] = False

    def read(self, data: Data) -> Bundle:
        """Public `terms` uint8 (4095, 2) and `responses` int16 (8190, 2), as shown; private `right` uint8 (8190,)."""
        terms = all_terms()
        off = rng(DATA_SEED, "judge-smol", "errors").choice(ERRORS, len(terms))
        sums = terms.sum(axis=1)
        pairs = np.stack([sums, sums + off], axis=1)
        shown = np.stack([pairs, pairs[:, ::-1]], axis=1).reshape(-1, 2)
        return Bundle(
            public={"terms": terms.astype(np.uint8), "responses": shown.astype(np.int16)},
            private={"right": np.tile(np.array([0, 1], np.uint8), len(terms))},
        )

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        pairs = np.arange(TEST, len(bundle.public()["terms"]))
        shown, pool = split_by_seed(pairs, rng(seed, "judge-smol", "split"), SHOWN, POOL)
        shown, pool, test = (both_orders(part) for part in (shown, pool, np.arange(TEST)))
        return Problems(shown, self.answers(bundle.private(), shown), pool, test)

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        terms, responses = public["terms"][indices // 2].tolist(), public["responses"][indices].tolist()
        return [
            f"What is {a} + {b}? {FIRST}: {one}. {SECOND}: {two}. Which is right?"
            for (a, b), (one, two) in zip(terms, responses, strict=True)
        ]

    def answer(self, response: str) -> str | None:
        return response if response in (FIRST, SECOND) else None

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(8),
            answers=Hints(self.hinted),
            shots=Shots(self.preceded),
            solutions=Solutions(self.solutions),
        )

    def measures(self) -> Measures:
        return Measures(cloze=self.cloze if self.by_likelihood else None)

    def cloze(self, public: Mapping[str, Array], indices: Array) -> Cloze:
        return Cloze(self.prompts(public, indices), [(FIRST, SECOND)] * len(indices))

    def hinted(self, prompt: str, answer: str) -> str:
        return prompt.replace("Which is right?", f"Which is right? ({answer})", 1)

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [(FIRST, SECOND)[number] for number in private["right"][indices].tolist()]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return self.answers(private, indices)

    def scores(self, answers: Sequence[str | None], truths: Sequence[str]) -> Mapping[str, float]:
        right = np.array([a == b for a, b in zip(answers, truths, strict=True)]).reshape(-1, 2)
        parsed = np.array([answer is not None for answer in answers]).reshape(-1, 2).all(axis=1)
        # Right in both orders, or wrong in both: the same response was named.
        consistent = parsed & (right[:, 0] == right[:, 1])
        return {"accuracy": float(right.all(axis=1).mean()), "swap_consistency": float(consistent.mean())}


def both_orders(pairs: Array) -> Array:
    """The problems (2 N,) of pairs (N,), the two orders of each beside each other."""
    return (2 * pairs[:, None] + np.arange(2)).ravel()
