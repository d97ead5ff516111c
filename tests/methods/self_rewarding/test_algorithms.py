"""What each method keeps and trains on, against hand-made answers: scripted policies, three prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from selfbench.methods.common.responses import by_group, kendall_tau, padded, vote
from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.oracle_answers import OracleAnswers
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.self_consistency import SelfConsistency
from selfbench.methods.self_rewarding.self_distillation import SelfDistillation
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood
from selfbench.methods.self_rewarding.sft import SFT, SFTMatched
from selfbench.methods.self_rewarding.star import STaR

Scripted = Callable[..., Any]
SHOWN = ("4+4=", "8")


def test_sft_trains_on_demonstrations_alone(scripted: Scripted, view: Any) -> None:
    policy = scripted()
    SFT(epochs=3).round(policy, view, 1)
    assert policy.calls == [("finetune", [SHOWN], 3)]


def test_matched_sft_takes_as_many_examples_as_prompts_and_demonstrations_together(
    scripted: Scripted, view: Any
) -> None:
    policy = scripted()
    view.demonstrations = (*view.demonstrations, view.demonstrations[0]._replace(prompt="5+5=", response="10"))
    SFTMatched().round(policy, view, 1)
    assert policy.calls[0] == ("use", "base")
    [(examples, _)] = policy.called("finetune")
    assert len(examples) == 2 + 3
    assert examples[:4] == [SHOWN, ("5+5=", "10")] * 2


def test_rest_em_keeps_different_accepted_responses_up_to_its_cutoff(scripted: Scripted, view: Any) -> None:
    policy = scripted([[["2", "2", "3", "2…"], ["x", "5", "05", "5"], ["17", "7", "1", "…"]]])
    view.parse = lambda text: text.lstrip("0") if text.isdigit() else None
    method = ReSTEM(samples=4, cutoff=2, epochs=5)
    method.setup(policy, view)
    method.round(policy, view, 2)
    assert policy.called("generate") == [(list(view.prompts), 4, 0.7, 1.0)]
    assert policy.calls[1:] == [
        ("use", "base"),
        ("finetune", [SHOWN, ("1+1=", "2"), ("2+3=", "5"), ("2+3=", "05")], 5),
    ]
    assert (1, "x") not in view.asked
    assert view.asked.count((0, "2")) == 1
    single = scripted([[["2"], ["5", "05"], ["17"]]])
    method = ReSTEM(cutoff=1)
    method.setup(single, view)
    method.round(single, view, 2)
    assert single.called("finetune")[0][0] == [SHOWN, ("1+1=", "2"), ("2+3=", "5")]


def test_rest_em_asks_for_no_more_answers_than_are_judged_in_a_run(scripted: Scripted, view: Any) -> None:
    view.verdicts = 2
    made = [["7", "8", "2", "3"], ["5", "5", "6", "7"], ["18", "18", "18", "18"]]
    policy, method = scripted([made, [["2", "9", "9", "9"], ["5", "4", "4", "4"], ["1", "18", "2", "3"]]]), ReSTEM()
    method.setup(policy, view)
    method.round(policy, view, 1)
    method.round(policy, view, 2)
    # The first two answers of the run to each prompt, once each.
    assert view.asked == [(0, "7"), (0, "8"), (1, "5"), (1, "6"), (2, "18"), (2, "1")]
    (first, _), (second, _) = policy.called("finetune")
    assert first == second == [SHOWN, ("2+3=", "5"), ("9+9=", "18")]


def test_unfiltered_distillation_keeps_wrong_answers_but_nothing_unparsed(scripted: Scripted, view: Any) -> None:
    policy = scripted([[["3"], ["5"], ["1…"]]])
    SelfDistillation(epochs=1).round(policy, view, 1)
    assert policy.called("finetune") == [([SHOWN, ("1+1=", "3"), ("2+3=", "5")], 1)]


def test_the_oracle_trains_on_every_solution(scripted: Scripted, view: Any) -> None:
    policy = scripted()
    OracleAnswers(epochs=1).round(policy, view, 1)
    assert policy.calls == [
        ("use", "base"),
        ("finetune", [SHOWN, ("1+1=", "2"), ("2+3=", "5"), ("9+9=", "18")], 1),
    ]


def test_star_rationalises_what_failed_and_trains_without_the_hint(scripted: Scripted, view: Any) -> None:
    policy = scripted([[["2"], ["4"], ["8"]], [["5"], ["19"]]])
    STaR(epochs=2).round(policy, view, 1)
    assert policy.calls == [
        ("finetune", [SHOWN, ("4+4?8=", "8")], 2),
        ("keep", "hints"),
        ("generate", list(view.prompts), 1, 0.0, 1.0),
        ("generate", ["2+3?5=", "9+9?18="], 1, 0.0, 1.0),
        ("use", "hints"),
        ("finetune", [SHOWN, ("1+1=", "2"), ("2+3=", "5")], 2),
    ]


def test_star_without_rationalisation_starts_from_the_first_policy(scripted: Scripted, view: Any) -> None:
    policy = scripted([[["2"], ["4"], ["18"]]])
    STaR(rationalise=False).round(policy, view, 1)
    assert [call[0] for call in policy.calls] == ["generate", "use", "finetune"]
    assert policy.called("use") == [("base",)]
    assert policy.called("finetune")[0][0] == [SHOWN, ("1+1=", "2"), ("9+9=", "18")]


def test_the_vote_counts_what_did_not_parse_among_all() -> None:
    assert vote(["5", None, "5", "6"]) == ("5", 0.5)
    assert vote(["7", "6", "6", "7"]) == ("7", 0.5)
    assert vote([None, None]) == (None, 0.0)


def test_self_consistency_keeps_the_samples_of_a_majority(scripted: Scripted, view: Any) -> None:
    policy = scripted([[["3", "3", "2", "x"], ["5", "6", "7", "5…"], ["8", "8", "8", "18"]]])
    SelfConsistency(samples=4, share=0.5).round(policy, view, 1)
    # Wrong majorities are kept: nobody tells. The second prompt has none.
    assert policy.called("finetune")[0][0] == [SHOWN, ("1+1=", "3"), ("9+9=", "8")]
    assert not view.asked


def test_self_rewarding_first_fine_tunes_then_prefers_best_to_worst(scripted: Scripted, view: Any) -> None:
    logp = {"2": -3.0, "3": -0.5, "13": -0.6, "5": -1.0, "x": 0.0}
    policy = scripted([[["2", "3", "13", "x"], ["5", "5", "x", "5…"], ["x", "x", "x", "x"]]],
                      lambda prompt, text, under: logp[text])  # fmt: skip
    method = SelfRewardingLikelihood(sft_epochs=2)
    method.round(policy, view, 1)
    assert policy.calls == [("finetune", [SHOWN], 2)]
    method.round(policy, view, 2)
    # Means over the tokens, stop included: 2: -1.5, 3: -0.25, 13: -0.2.
    [(pairs, labels, rest)] = policy.called("prefer")
    assert pairs == [("1+1=", "13", "2")]
    assert labels is None
    assert rest == {"beta": 0.1, "epochs": 1, "lr_scale": 0.005}
    assert policy.called("generate") == [(list(view.prompts), 4, 0.7, 0.9)]


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [30, 20, 10], -1.0),
        ([1, 2, 3], [20, 10, 30], 1 / 3),
        # Of six pairs, (a, b) and (c, d) disagree.
        ([4, 3, 2, 1], [3, 4, 1, 2], 2 / 6),
        ([0.5, -1], [0.1, 0.2], -1.0),
    ],
)
def test_kendalls_tau_by_hand(first: list[float], second: list[float], tau: float) -> None:
    (values, filled), (others, _) = padded([first, [7.0, 8.0]]), padded([second, [1.0, 2.0]])
    assert kendall_tau(values, others, filled).tolist() == pytest.approx([tau, 1.0])


def test_kendalls_tau_is_that_of_scipy_without_ties() -> None:
    draw = np.random.default_rng(0)
    groups = [(draw.normal(size=n), draw.normal(size=n)) for n in draw.integers(2, 7, 50)]
    values, filled = padded([one.tolist() for one, _ in groups])
    found = kendall_tau(values, padded([two.tolist() for _, two in groups])[0], filled)
    expected = [scipy.stats.kendalltau(one, two).statistic for one, two in groups]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_groups_come_apart_as_they_were_joined() -> None:
    assert by_group(torch.tensor([1.0, 2.0, 3.0]), [2, 0, 1]) == [[1.0, 2.0], [], [3.0]]


NOW = {"2": -1.0, "3": -2.0, "4": -3.0, "5": -1.0, "6": -4.0}
FIRST = {"2": -1.5, "3": -1.0, "4": -9.0, "5": -2.0, "6": -2.0}
BEFORE = {"2": -2.0, "3": -2.5, "4": -2.6, "5": -3.0, "6": -1.0}
MADE = [["2", "3", "4", "2", "x"], ["5", "6", "6…", "x", "5"], ["7", "x", "7", "7", "7"]]


def weigh(prompt: str, text: str, under: str) -> float:
    return {"": NOW, "base": FIRST, "previous": BEFORE}[under].get(text, 0.0)


def test_cream_weighs_pairs_by_the_mean_consistency(scripted: Scripted, view: Any) -> None:
    policy = scripted([[*MADE], [*MADE]], weigh)
    method = CREAM()
    method.round(policy, view, 1)
    method.round(policy, view, 2)
    method.round(policy, view, 3)
    assert [call[0] for call in policy.calls] == [
        "finetune", "generate", "keep", "prefer", "generate", "keep", "prefer",
    ]  # fmt: skip
    # r = log pi_t - log pi_0: 2: 0.5, 3: -1, 4: 6 and 5: 1, 6: -2. "7" stands alone.
    pairs = [("1+1=", "4", "3"), ("2+3=", "5", "6")]
    (first, labels, _), (second, more, rest) = policy.called("prefer")
    assert first == second == pairs
    # By M_0 alone: order 3, 2, 4 against 4, 2, 3 (tau -1), and 5 level with 6 (tau 0 of one pair).
    assert labels == pytest.approx([(0.0 + 0.5) / 2] * 2)
    # By M_{t-1}: r' of 2: -0.5, 3: -1.5, 4: 6.4 (tau 1); 5: -1, 6: 1 (tau -1).
    assert more == pytest.approx([(1.0 + 0.0) / 2] * 2)
    assert rest == {"beta": 0.1, "epochs": 1, "lr_scale": 0.005}


def test_cream_can_weigh_each_prompt_by_its_own_consistency(scripted: Scripted, view: Any) -> None:
    policy = scripted([MADE], weigh)
    CREAM(per_prompt=True).round(policy, view, 3)
    assert policy.called("prefer")[0][1] == [1.0, 0.0]


def test_cream_makes_the_pairs_and_weights_of_a_slow_loop(scripted: Scripted, view: Any) -> None:
    """Argmax and argmin of the rewards, tau over ordinal ranks: the authors' way, one prompt at a time."""
    draw = np.random.default_rng(1)
    names = [str(number) for number in range(10, 15)]
    tables = [dict(zip(names, draw.normal(size=5), strict=True)) for _ in range(9)]
    rank = dict(zip(view.prompts, range(3), strict=True))
    under = {"": 0, "base": 1, "previous": 2}
    policy = scripted([[names] * 3], lambda prompt, text, name: tables[3 * under[name] + rank[prompt]][text])
    CREAM().round(policy, view, 4)
    [(pairs, labels, _)] = policy.called("prefer")
    expected, rates = [], []
    for prompt, at in rank.items():
        now, first, before = (np.array([tables[3 * k + at][text] for text in names]) for k in range(3))
        one, two = (scipy.stats.rankdata(values - first, method="ordinal") for values in (now, before))
        rates.append((scipy.stats.kendalltau(one, two).statistic + 1) / 2)
        expected.append((prompt, names[np.argmax(now - first)], names[np.argmin(now - first)]))
    assert pairs == expected
    assert labels == pytest.approx([np.mean(rates)] * 3)


@pytest.mark.parametrize("method", [SelfRewardingLikelihood(), CREAM()], ids=lambda method: type(method).__name__)
def test_what_does_not_parse_is_never_preferred(scripted: Scripted, view: Any, method: Any) -> None:
    draw = np.random.default_rng(2)
    texts = ["1", "2", "x", "…", "3…", "12", "", "123"]
    for _ in range(20):
        made = [[str(draw.choice(texts)) for _ in range(method.samples)] for _ in view.prompts]
        policy = scripted([made], lambda prompt, text, under: {"x": 9.0, "…": 9.0}.get(text, len(text) + len(under)))
        method.round(policy, view, 3)
        used = {text for pairs, *_ in policy.called("prefer") for pair in pairs for text in pair[1:]}
        assert used <= {"1", "2", "12"}


def test_equal_rewards_give_no_pair(scripted: Scripted, view: Any) -> None:
    for method in (SelfRewardingLikelihood(), CREAM()):
        policy = scripted([[["1", "2"], ["3", "4"], ["5", "6"]]])
        method.round(policy, view, 3)
        assert [pairs for pairs, *_ in policy.called("prefer")] == [[]]


def test_nothing_to_rank_is_no_error(scripted: Scripted, view: Any) -> None:
    for method in (SelfRewardingLikelihood(), CREAM()):
        policy = scripted([[["x"], ["x"], ["1"]]])
        method.round(policy, view, 3)
        assert not any(itertools.chain.from_iterable(pairs for pairs, *_ in policy.called("prefer")))
