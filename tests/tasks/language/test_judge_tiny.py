"""Rated pairs: what is shown and held out, the judgements, and what a judge is worth, by hand and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.pretrain import load_weights
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.judge_tiny import (
    POOL,
    SHOWN,
    TEST,
    WEIGHTS,
    WEIGHTS_SHA256,
    JudgeTiny,
    flawed,
    kendall_tau_b,
    made_pairs,
    pearson,
)

TASK = JudgeTiny()
BY_HAND = {
    "terms": np.array([[[4, 3, 2], [1, 3, 4]]], np.uint8),
    "responses": np.array([[[0, 1, 1], [0, 3, 1]]], np.uint8),
    "sums": np.array([[0, 1, 1]], np.uint8),
}
BOTH = np.arange(2)


@pytest.fixture(scope="module")
def bundle() -> BundleFolder:
    return build(registry.get("task", "judge-tiny"))


def test_a_problem_by_hand_in_both_orders() -> None:
    prompts = ["432+134?011?031=", "432+134?031?011="]
    assert TASK.prompts(BY_HAND, BOTH) == prompts
    assert TASK.solutions(BY_HAND, BOTH) == ["011,...,.^.", "011,.^.,..."]
    assert TASK.answers(BY_HAND, BOTH) == ["32", "23"] == [TASK.answer(text) for text in TASK.solutions(BY_HAND, BOTH)]
    assert TASK.references(BY_HAND, BOTH) == ["011", "011"]
    assert TASK.referenced(prompts[0], "011") == "432+134?011?031?011="
    assert TASK.ratings("000,...,.^.") == (1.0, 2 / 3)
    # Wherever they stand: 031 and 011 share 0 and 1, 110 and 011 all digits.
    assert TASK.similarities(prompts[0], "011") == (1.0, 2 / 3)
    assert TASK.similarities("432+134?110?222=", "011") == (1.0, 0.0)
    assert TASK.steps("011,...,.^.") == ["011,", "...,", ".^."]
    longest = join(TASK.tokenizer(), [TASK.referenced(prompts[0], "011")], ["011,...,.^."])
    assert longest.lengths[0] < 64
    assert longest.lengths[0] - longest.starts[0] <= TASK.max_new


def test_pairs_have_unlike_quality_and_different_problems() -> None:
    terms, responses = made_pairs(2000, np.random.default_rng(0))
    assert len(np.unique(terms.reshape(-1, 6), axis=0)) == 2000
    right = (responses == terms.sum(axis=1)[:, None] % 5).sum(axis=2)
    assert (right[:, 0] != right[:, 1]).all()
    # Every pair of unlike qualities is equally frequent, every place equally often wrong.
    counts = np.bincount(4 * right[:, 0] + right[:, 1], minlength=16).reshape(4, 4)
    assert scipy.stats.chisquare(counts[~np.eye(4, dtype=bool)]).pvalue > 1e-3
    wrong = (flawed(np.zeros((3000, 3), np.uint8), np.random.default_rng(1)) != 0).sum(axis=(0, 1))
    assert scipy.stats.chisquare(wrong).pvalue > 1e-3


def test_no_test_problem_is_shown_and_orders_stay_together(bundle: BundleFolder) -> None:
    pools = []
    for seed in range(2):
        problems = TASK.problems(bundle, seed)
        pairs = [set((part // 2).tolist()) for part in (problems.demonstrations, problems.pool, problems.test)]
        assert [len(part) for part in pairs] == [SHOWN, POOL, TEST]
        assert not pairs[0] & pairs[1]
        assert not (pairs[0] | pairs[1]) & pairs[2]
        shown = TASK.prompts(bundle.public(), problems.demonstrations)
        assert problems.responses == TASK.solutions(bundle.private(), problems.demonstrations)
        assert len(set(shown)) == 2 * SHOWN
        pools.append(pairs[1])
    assert pools[0] != pools[1]
    assert bundle.public().keys() == {"terms", "responses"}


@pytest.mark.parametrize(("answers", "accuracy", "consistency"), [
    (["32", "23", "01", "10"], 1.0, 1.0), (["30", "30", "21", "21"], 0.0, 0.0), (["23", "32", "10", "01"], 0.0, 1.0),
    (["31", "13", "22", "22"], 0.5, 0.5), (["32", None, "01", "10"], 0.5, 0.5), (["32", "23", "01", "11"], 0.5, 0.5),
])  # fmt: skip
def test_only_judgements_that_agree_in_both_orders_count(
    answers: list[str | None], accuracy: float, consistency: float
) -> None:
    found = TASK.scores(answers, ["32", "23", "02", "20"])
    assert {name: found[name] for name in ("accuracy", "swap_consistency")} == {
        "accuracy": accuracy, "swap_consistency": consistency,
    }  # fmt: skip


def test_correlations_are_those_of_mean_ratings_by_a_slow_loop() -> None:
    draw = np.random.default_rng(2)
    truths, answers = [], []
    for _ in range(60):
        a, b = draw.choice(4, 2, replace=False).tolist()
        truths += [f"{a}{b}", f"{b}{a}"]
        for one, two in ((a, b), (b, a)):
            noisy = [int(np.clip(value + draw.integers(-1, 2), 0, 3)) for value in (one, two)]
            answers.append(None if draw.random() < 0.1 else "".join(map(str, noisy)))
    ratings, quality = [], []
    for at in range(0, len(truths), 2):
        first, second = (list(map(float, answer)) if answer else [1.5, 1.5] for answer in answers[at : at + 2])
        ratings += [(first[0] + second[1]) / 2, (first[1] + second[0]) / 2]
        quality += [float(one) for one in truths[at]]
    found = TASK.scores(answers, truths)
    assert found["correlation"] == pytest.approx(scipy.stats.pearsonr(ratings, quality).statistic)
    assert found["rank_correlation"] == pytest.approx(scipy.stats.kendalltau(ratings, quality).statistic)
    assert found["correlation"] > 0.5


def test_a_constant_judge_is_worth_nothing() -> None:
    found = TASK.scores(["22"] * 4, ["32", "23", "01", "10"])
    assert set(found.values()) == {0.0}
    assert pearson(np.ones(3), np.arange(3.0)) == kendall_tau_b(np.arange(3.0), np.ones(3)) == 0.0


@pytest.mark.parametrize("text", ["", "011", "011,...", "011,...,.^.,", "11,...,.^.", "011,...,.^.\n", "011,..,.^.",
                                  "051,...,.^.", "011,...,.^" + CUT_OFF, " 011,...,.^."])  # fmt: skip
def test_what_is_not_of_the_form_rates_nothing(text: str) -> None:
    assert TASK.answer(text) is None


def test_the_first_judge_is_the_kept_one_and_knows_how_to_compare(bundle: BundleFolder) -> None:
    low, high = TASK.clean_error
    assert low < bundle.facts["clean_error"] < high
    assert bundle.facts["referenced_error"] < 0.1
    kept = load_weights(WEIGHTS, WEIGHTS_SHA256)
    loaded = bundle.model()
    assert all((loaded[name] == value.float()).all() for name, value in kept.items())
