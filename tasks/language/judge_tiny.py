"""Judging as a task for a small language model: how many digits of two responses are right, asked in both orders.

Everything is made at run time from a seed, so that nothing can be contaminated. The first judge is part of the task:
its weights were trained once by `train_base` and are kept beside this file, for the same training on another kind of
processor rounds differently.
"""

from __future__ import annotations

import re
from collections import Counter
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
from ...suite.protocols.policy_grants import Grants, References, Solutions, Steps, Verifier
from ...suite.protocols.sampling import Sampling
from ...suite.protocols.sequences import join
from ...suite.protocols.tokens import CharTokenizer
from ...suite.registry import register_task
from ...suite.seeds import rng
from .judge_smol import both_orders
from .small_model import BaseTraining, small_llama

if TYPE_CHECKING:
    from ...suite.data import Data

RADIX, DIGITS = 5, 3
SHOWN, TEST, OTHERS, POOL = 60, 300, 1500, 400
"""Pairs of responses; each is two problems, one an order."""
VOCABULARY = "\0\n01234+=?.^,"
"""Padding, stop, then what is written: `.` for a right digit, `^` for a wrong one."""
RESPONSE = re.compile(r"[0-4]{3},([.^]{3}),([.^]{3})")
DATA_SEED = 0
BASE_SEED, BASE_STEPS, BASE_BATCH, BASE_LR = 1, 2000, 64, 3e-3
WEIGHTS = Path(__file__).parent / "weights" / "judge-tiny.safetensors"
WEIGHTS_SHA256 = "a1facd60448363c7e17b3ecf61dd996a260281c51810afb9a5629149f31f395a"


@register_task(
    "judge-tiny",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Which of two responses is better, rated digit by digit by a small language model, asked in both orders",
    budget={"currency": "tokens", "limit": 3000000, "wall_seconds": 300.0},
    data=(),
    grants=("verifier", "steps", "solutions", "references"),
    tags=("pairs",),
)
class JudgeTiny(PolicyTask):
    """A prompt is `432+134?011?031=`: a problem, to add digit by digit modulo five, and two responses to it.

    Its worked judgement is `011,...,.^.`: the judge's own result, then of each response which digits are right: three
    steps. The quality of a response is known, for the harness has made it: 0, 1, 2 or 3 right digits, of two responses
    never as many. A judgement counts when it is of that form to the last character, and its rating of a response is the
    number of digits that it calls right.

    Problem 2 i asks about pair i in one order, 2 i + 1 in the other. A pair counts where both judgements rate the
    better response higher: `accuracy` is the share of such pairs, 0 for a judge of places. `swap_consistency` is the
    share of pairs whose two judgements parse and rate the same response higher. `correlation` and `rank_correlation`
    (Pearson's r, Kendall's tau-b) compare the mean rating of each response in the two orders with its quality; what
    does not parse rates nothing, 1.5, so that leaving out what is hard gains nothing.

    With a reference, `432+134?011?031?011=`, the first judge is good: it has learned to compare digits on any number of
    problems whose references were drawn at random, which tell nothing of additions. Adding it has seen in the 60 pairs
    of the demonstrations alone. 300 test pairs, the same for all seeds; of 1,500 others the seed draws a pool of 400.
    There are no `shots`: with two worked judgements before it, of 28 symbols each, a prompt leaves of the model's 64
    positions no room for its own.
    """

    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-3, weight_decay=0.3, beta2=0.99, batch_size=64, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 4
    max_new: ClassVar[int] = 12
    votes: ClassVar[int] = 5
    step_ends: ClassVar[str] = ","
    rows: ClassVar[int] = 2048
    clean_error: ClassVar[tuple[float, float]] = (0.83, 0.90)

    def build(self, data: Data) -> Bundle:
        """Public `terms` and `responses` uint8 (pairs, 2, 3), digits; private `sums` uint8 (pairs, 3).

        Measures the first judge on the test problems, without references and with them.
        """
        terms, responses = made_pairs(SHOWN + TEST + OTHERS, rng(DATA_SEED, "judge-tiny", "pairs"))
        public, private = {"terms": terms, "responses": responses}, {"sums": terms.sum(axis=1, dtype=np.uint8) % RADIX}
        model = self.model()
        model.load_state_dict(load_weights(WEIGHTS, WEIGHTS_SHA256))
        test = both_orders(np.arange(SHOWN, SHOWN + TEST))
        prompts, truths = self.prompts(public, test), self.answers(private | public, test)
        shown = [self.referenced(*pair) for pair in zip(prompts, self.references(private, test), strict=True)]
        facts = {}
        for name, asked in (("clean_error", prompts), ("referenced_error", shown)):
            with reproducible(0):
                sampler = OwnSampler(model.eval(), self.tokenizer(), self.rows)
                found = generate(
                    sampler, self.tokenizer(), asked, 1, Sampling(0.0), max_new=self.max_new,
                    generator=torch.Generator(),
                )  # fmt: skip
            facts[name] = 1.0 - self.scores([self.answer(text) for [text] in found], truths)["accuracy"]
        parameters = sum(value.numel() for value in model.parameters())
        return Bundle(
            public, {**private, "responses": responses}, model.state_dict(), {**facts, "parameters": parameters}
        )

    def model(self) -> nn.Module:
        return small_llama(len(VOCABULARY))

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(VOCABULARY)

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        public, private = bundle.public(), bundle.private()
        shown = both_orders(np.arange(SHOWN))
        others = rng(seed, "judge-tiny", "pool").permutation(np.arange(SHOWN + TEST, len(public["terms"])))[:POOL]
        return Problems(
            demonstrations=shown,
            responses=self.solutions(private, shown),
            pool=both_orders(np.sort(others)),
            test=both_orders(np.arange(SHOWN, SHOWN + TEST)),
        )

    def prompts(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        terms, responses = public["terms"][indices // 2], ordered(public["responses"], indices)
        return [
            f"{digits(a)}+{digits(b)}?{digits(one)}?{digits(two)}="
            for (a, b), (one, two) in zip(terms.tolist(), responses.tolist(), strict=True)
        ]

    def answer(self, response: str) -> str | None:
        """The numbers of digits that are called right, such as `32`."""
        match = RESPONSE.fullmatch(response)
        return "".join(str(marks.count(".")) for marks in match.groups()) if match else None

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(32),
            references=References(self.references, self.referenced, self.similarities, self.ratings),
            steps=Steps(self.step_ends),
            solutions=Solutions(self.solutions),
        )

    def ratings(self, response: str) -> tuple[float, ...]:
        return tuple(int(rating) / DIGITS for rating in self.answer(response) or "")

    def referenced(self, prompt: str, reference: str) -> str:
        """`432+134?011?031?011=`"""
        return f"{prompt[:-1]}?{reference}="

    def similarities(self, prompt: str, reference: str) -> tuple[float, ...]:
        """The share of digits that both have, wherever they stand: as rough as a similarity of meaning."""
        known = Counter(reference)
        return tuple((known & Counter(text)).total() / DIGITS for text in prompt[:-1].split("?")[1:])

    def references(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """The results."""
        return [digits(total) for total in private["sums"][indices // 2].tolist()]

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return ["".join(map(str, row)) for row in self._right(private, indices).sum(axis=2).tolist()]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        totals, marks = self.references(private, indices), self._right(private, indices).tolist()
        return [
            ",".join([total, *("".join("^."[good] for good in row) for row in rows)])
            for total, rows in zip(totals, marks, strict=True)
        ]

    def _right(self, private: Mapping[str, Array], indices: Array) -> Array:
        """Which digits of both responses are right: bool (N, 2, 3)."""
        return ordered(private["responses"], indices) == private["sums"][indices // 2][:, None]

    def scores(self, answers: Sequence[str | None], truths: Sequence[str]) -> Mapping[str, float]:
        rated = np.array([[float(one) for one in answer or ""] or [DIGITS / 2] * 2 for answer in answers])
        quality = np.array([[float(one) for one in truth] for truth in truths])
        # One row a pair, its responses in the order of the first problem: (pairs, orders, responses).
        rated, quality = (np.stack([both[::2], both[1::2, ::-1]], axis=1) for both in (rated, quality))
        verdict, truth = (np.sign(both[:, :, 0] - both[:, :, 1]) for both in (rated, quality))
        same = (verdict[:, 0] == verdict[:, 1]) & (verdict[:, 0] != 0)
        means, known = rated.mean(axis=1).ravel(), quality[:, 0].ravel()
        return {
            "accuracy": float((same & (verdict[:, 0] == truth[:, 0])).mean()),
            "swap_consistency": float(same.mean()),
            "correlation": pearson(means, known),
            "rank_correlation": kendall_tau_b(means, known),
        }


def digits(values: Sequence[int]) -> str:
    return "".join(map(str, values))


def ordered(responses: Array, indices: Array) -> Array:
    """The responses (N, 2, 3) of problems `indices`, in the order in which each shows them."""
    found = responses[indices // 2]
    return np.where((indices % 2 == 1)[:, None, None], found[:, ::-1], found)


def made_pairs(n: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Different problems, uint8 (n, 2, 3), and two responses to each, uint8 (n, 2, 3), of unlike quality."""
    numbers = draw.choice(RADIX ** (2 * DIGITS), n, replace=False)
    terms = (numbers[:, None] // RADIX ** np.arange(2 * DIGITS) % RADIX).reshape(n, 2, DIGITS)
    return terms.astype(np.uint8), flawed(terms.sum(axis=1) % RADIX, draw)


def flawed(sums: Array, draw: np.random.Generator) -> Array:
    """Two responses to each of the results (n, 3), uint8 (n, 2, 3), with two different numbers of right digits."""
    n = len(sums)
    right = draw.permuted(np.tile(np.arange(DIGITS + 1), (n, 1)), axis=1)[:, :2]
    place = draw.permuted(np.tile(np.arange(DIGITS), (n, 2, 1)), axis=2)
    off = np.where(place < right[:, :, None], 0, draw.integers(1, RADIX, (n, 2, DIGITS)))
    return ((sums[:, None] + off) % RADIX).astype(np.uint8)


def pearson(a: Array, b: Array) -> float:
    """Pearson's r of (N,) and (N,), 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def kendall_tau_b(a: Array, b: Array) -> float:
    """Kendall's tau-b of (N,) and (N,), ties in either counted out of the scale; 0 where one of them is constant."""
    one, two = (np.sign(values[:, None] - values).ravel() for values in (a, b))
    scale = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / scale if scale > 0 else 0.0


def train_base() -> nn.Module:
    """The training that made the kept weights: comparing digits with references that are drawn anew for every step, and
    the demonstrations, without references."""
    task = JudgeTiny()
    with reproducible(BASE_SEED):
        model = task.model().train()
        training = BaseTraining(model, task.recipe, BASE_LR, BASE_STEPS)
        draw = rng(BASE_SEED, "judge-tiny", "base")
        terms, responses = made_pairs(SHOWN + TEST + OTHERS, rng(DATA_SEED, "judge-tiny", "pairs"))
        public = {"terms": terms, "responses": responses}
        private = {"responses": responses, "sums": terms.sum(axis=1, dtype=np.uint8) % RADIX}
        shown = both_orders(np.arange(SHOWN))
        known = (task.prompts(public, shown), task.solutions(private, shown))
        for _ in range(BASE_STEPS):
            drawn = draw.choice(len(shown), BASE_BATCH // 4, replace=False).tolist()
            skill = _comparisons(task, BASE_BATCH * 3 // 8, draw)
            prompts, texts = (more + [part[at] for at in drawn] for more, part in zip(skill, known, strict=True))
            sequences = join(task.tokenizer(), prompts, texts)
            training.step(sequences, np.arange(len(sequences)))
    return model.eval()


def _comparisons(task: JudgeTiny, n: int, draw: np.random.Generator) -> tuple[list[str], list[str]]:
    """Prompts and judgements (2 n) of pairs whose references have nothing to do with their problems."""
    terms, sums = (draw.integers(0, RADIX, (n, *shape), dtype=np.uint8) for shape in ((2, DIGITS), (DIGITS,)))
    responses = flawed(sums, draw)
    both = both_orders(np.arange(n))
    prompts = task.prompts({"terms": terms, "responses": responses}, both)
    private = {"sums": sums, "responses": responses}
    shown = [task.referenced(*pair) for pair in zip(prompts, task.references(private, both), strict=True)]
    return shown, task.solutions(private, both)
