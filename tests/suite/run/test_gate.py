"""The judge's gate: pairs, heuristics and the binomial tail by hand, and its figures in real runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from selfbench.suite.errors import MethodError
from selfbench.suite.run.gate import Gate, at_least


def parse(texts: Sequence[str]) -> list[str | None]:
    return [text.lstrip("0") if text.isdigit() else None for text in texts]


def opened(right: list[int], first: list[str], second: list[str], judge: list[tuple[int, int]]) -> dict[str, float]:
    """The figures of a gate about pairs of `first` and `second`; 1 in `right` says that the first is right."""
    truths = [one if good == 1 else two for good, one, two in zip(right, first, second, strict=True)]
    gate = Gate(truths, list, 2, 0)
    responses = [text for pair in zip(first, second, strict=True) for text in pair]
    pairs = gate.pairs(responses, 0)
    flipped = [at // 2 * 2 != one for at, one in zip(range(0, 2 * len(right), 2), pairs[:, 0].tolist(), strict=True)]
    verdicts = np.array([[-a, -b] if flip else [a, b] for flip, (a, b) in zip(flipped, judge, strict=True)]).T
    assert gate.judged(verdicts) == gate.allows
    return gate.figures()


def test_of_every_problem_the_first_right_and_the_first_wrong_response_are_paired() -> None:
    gate = Gate(["5", "7", "9"], parse, 4, 3)
    responses = ["x", "4", "05", "5", "7", "7", "7…", "07", "1", "2", "3", "9"]
    pairs = gate.pairs(responses, 2)
    assert [set(pair) for pair in pairs.tolist()] == [{1, 2}, {8, 11}]
    again = Gate(["5", "7", "9"], parse, 4, 3)
    assert again.pairs(responses, 2).tolist() == pairs.tolist()
    with pytest.raises(MethodError, match="once a round"):
        again.pairs(responses, 2)
    with pytest.raises(MethodError, match="no such problems"):
        Gate(["5"], parse, 4, 0).pairs(["1"] * 3, 0)


def test_right_responses_stand_first_as_often_as_second() -> None:
    n = 400
    gate = Gate(["1"] * n, parse, 2, 0)
    pairs = gate.pairs(["1", "2"] * n, 5)
    first = (pairs[:, 0] % 2 == 0).mean()
    assert abs(first - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_figures_by_hand() -> None:
    right = [1, 1, -1, 1, -1, 1, 1, 1, 1, 1]
    first = ["aa", "aa", "b", "a", "c", "a", "aa", "aa", "aa", "a"]
    second = ["b", "b", "cc", "bb", "d", "b", "b", "b", "b", "bb"]
    # Longer: six and the third; shorter: the fourth and the last; equally long: two, right in one of two orders.
    judge = [(1, -1), (1, -1), (-1, 1), (1, -1), (-1, 1), (1, -1), (1, 1), (0, -1), (-1, 1), (1, -1)]
    found = opened(right, first, second, judge)
    assert found == {
        "gate_open": 0.0, "gate_pairs": 10.0, "gate_accuracy": 0.7, "gate_heuristic": (6 + 1) / 10,
        "gate_consistency": 0.8,
    }  # fmt: skip


def judged(right: int, n: int = 40) -> dict[str, float]:
    """A judge that is right about the first `right` of n pairs of equally long responses, and wrong about the rest."""
    return opened([1] * n, ["a"] * n, ["b"] * n, [(1, -1) if at < right else (-1, 1) for at in range(n)])


def test_the_gate_opens_where_the_binomial_test_says_so() -> None:
    for right in range(15, 41):
        found = judged(right)
        expected = scipy.stats.binomtest(right, 40, 0.5, alternative="greater").pvalue
        assert at_least(right, 40, 0.5) == pytest.approx(expected)
        assert found["gate_open"] == float(expected < 0.05)
        assert found["gate_heuristic"] == 0.5
    assert judged(26)["gate_open"] == 1.0
    assert judged(25)["gate_open"] == 0.0


@pytest.mark.parametrize("verdict", [(1, 1), (-1, -1), (0, 0)], ids=["first", "second", "none"])
def test_a_judge_of_places_never_opens_it(verdict: tuple[int, int]) -> None:
    found = opened([1, -1] * 30, ["a"] * 60, ["b"] * 60, [verdict] * 60)
    assert found["gate_accuracy"] == found["gate_consistency"] == found["gate_open"] == 0.0


def test_a_judge_of_length_never_opens_it() -> None:
    n = 60
    first, second = ["aa"] * n, ["b"] * n
    right = [1] * 50 + [-1] * 10
    found = opened(right, first, second, [(1, -1)] * n)
    assert found["gate_accuracy"] == found["gate_heuristic"] == 50 / 60
    assert found["gate_open"] == 0.0


def test_without_problems_there_is_no_gate_and_without_pairs_it_stays_shut() -> None:
    assert Gate([], parse, 4, 0).allows
    gate = Gate(["1"], parse, 2, 0)
    assert not gate.allows
    assert gate.pairs(["1", "1"], 1).shape == (0, 2)
    assert not gate.judged(np.zeros((2, 0)))
    assert not gate.allows
    assert gate.figures()["gate_pairs"] == 0.0
    # The next round asks again.
    assert gate.figures() == {}
    with pytest.raises(MethodError, match="a verdict a pair"):
        gate.judged(np.zeros((2, 0)))
