"""The judge's gate: a judge's preferences are used only after it has beaten a heuristic on labelled problems.

The harness owns the labels; it runs in the scorer's process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..bundle import Array
from ..errors import MethodError
from ..seeds import rng

Parse = Callable[[Sequence[str]], Sequence[str | None]]
SIGNIFICANCE = 0.05
"""How probable it may be that the heuristic is right as often as the judge was."""
FIGURES = ("gate_open", "gate_pairs", "gate_accuracy", "gate_heuristic", "gate_consistency")


class Gate:
    """Pairs of a right and a wrong response to labelled problems, on which a judge is asked in both orders.

    `answers` (P,) are the true answers to the problems, `parse` gives those of responses, `each` is the number of
    responses to a problem. Without problems there is no gate, and everything is allowed.
    """

    def __init__(self, answers: Sequence[str], parse: Parse, each: int, seed: int) -> None:
        self._answers, self._parse, self._each, self._seed = answers, parse, each, seed
        self._right = np.zeros(0, np.int64)
        self._longer = np.zeros(0, np.int64)
        self._asked = False
        self._figures: dict[str, float] = {}

    @property
    def allows(self) -> bool:
        """Whether preferences may be used in this round."""
        return not len(self._answers) or self._figures.get("gate_open") == 1.0

    def pairs(self, responses: Sequence[str], number: int) -> Array:
        """Which of the responses (P each,) are compared in round `number`: int64 (M, 2), in an order drawn at random.

        Of every problem the first right and the first wrong one that parses, where there are both.
        """
        if not len(self._answers) or len(responses) != self._each * len(self._answers):
            raise MethodError("the judge's gate has no such problems")
        if self._asked:
            raise MethodError("the judge's gate is asked once a round")
        self._asked = True
        found, right = [], []
        draw, parsed = rng(self._seed, "gate", str(number)), self._parse(responses)
        for problem, truth in enumerate(self._answers):
            places = range(problem * self._each, (problem + 1) * self._each)
            good = [at for at in places if parsed[at] == truth]
            bad = [at for at in places if parsed[at] not in (None, truth)]
            if good and bad:
                second = int(draw.integers(2))
                found.append((bad[0], good[0]) if second else (good[0], bad[0]))
                right.append(-1 if second else 1)
        pairs = np.array(found, np.int64).reshape(-1, 2)
        lengths = np.array([len(text) for text in responses], np.int64)[pairs]
        self._right, self._longer = np.array(right, np.int64), np.sign(lengths[:, 0] - lengths[:, 1])
        return pairs

    def judged(self, verdicts: Array) -> bool:
        """Whether the gate opens to verdicts (2, M), above 0 for the response shown first, of both orders.

        A judge is right about a pair where both its verdicts are. The heuristic takes the longer response of a pair, or
        the shorter one, whichever is right more often, and of equally long ones the one in the first place, which is
        right in one order. The gate opens where a heuristic that is right as often as it was would seldom, by the
        binomial distribution, be right about as many pairs as the judge.
        """
        n = len(self._right)
        if not self._asked or self._figures or verdicts.shape != (2, n):
            raise MethodError("the judge's gate wants a verdict a pair, in both orders, once a round")
        one, two = np.sign(verdicts[0]), -np.sign(verdicts[1])
        right = int(((one == self._right) & (two == self._right)).sum())
        tied = float((self._longer == 0).sum()) / 2.0
        longer, shorter = ((self._longer == sign * self._right).sum() for sign in (1, -1))
        # Without ties `longer` and `shorter` sum to n; ties, 0, are equal to neither sign.
        heuristic = (max(float(longer), float(shorter)) + tied) / n if n else 1.0
        opened = bool(n) and at_least(right, n, heuristic) < SIGNIFICANCE
        values = (
            opened,
            n,
            right / n if n else 0.0,
            heuristic,
            float(((one == two) & (one != 0)).mean()) if n else 0.0,
        )
        self._figures = dict(zip(FIGURES, map(float, values), strict=True))
        return opened

    def figures(self) -> dict[str, float]:
        """The figures of this round, which ends with it; none where the gate was not asked."""
        found, self._figures, self._asked = self._figures, {}, False
        return found


def at_least(k: int, n: int, p: float) -> float:
    """The probability of k successes or more among n, each of probability p."""
    return sum(math.comb(n, at) * p**at * (1.0 - p) ** (n - at) for at in range(k, n + 1))
