"""Confidence-guided beam search: scores and draws by hand, a slow loop, greedy decoding as a special case."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from selfbench.methods.self_rewarding.tree_search import Beam, TreeSearch
from selfbench.suite.protocols.policy_examples import Example

Play = Callable[..., Any]


@dataclass
class Tables:
    """Next steps, log-probabilities and confidences that are given."""

    after: dict[str, list[str]]
    logp: dict[str, float]
    sure: dict[str, float]
    fitted: list[tuple[Any, ...]] = field(default_factory=list)

    def value_model(self) -> Tables:
        return self

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        return [self.after.get(text, [])[:n] for text in begun]

    def logprobs(self, prompts: Sequence[str], responses: Sequence[str], unfinished: bool) -> Tensor:
        return torch.tensor([self.logp[text] for text in responses], dtype=torch.float64)

    def values(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([self.sure[text] for text in responses], dtype=torch.float64)

    def fit(self, *args: Any) -> float:
        self.fitted.append(args)
        return 0.0


class Shown:
    demonstrations = (Example("4+4=", ".8"), Example("5+6=", ".11"))
    generator = torch.Generator().manual_seed(0)
    parse = staticmethod(lambda text: text[1:] if text[1:].isdigit() else None)
    steps = staticmethod(lambda text: [text[:1], text[1:]])


def searcher(policy: Any, **settings: Any) -> TreeSearch:
    method = TreeSearch(**settings)
    method.setup(policy, Shown())
    return method


def test_the_best_product_of_likelihood_and_confidence_wins() -> None:
    policy = Tables(
        {"…": [".…", ",…"], ".…": [".1", ".2"], ",…": [",3", ",x"]},
        {".…": math.log(0.6), ",…": math.log(0.3), ".1": math.log(0.5), ".2": math.log(0.1),
         ",3": math.log(0.2), ",x": math.log(0.1)},
        {".…": 0.5, ",…": 0.9, ".1": 0.2, ".2": 0.8, ",3": 0.9, ",x": 1.0},
    )  # fmt: skip
    # E: .1: sqrt(0.5 * 0.5 * 0.2), .2: sqrt(0.1 * 0.5 * 0.8), ,3: sqrt(0.2 * 0.9 * 0.9) = 0.402, the largest.
    method = searcher(policy, beams=4, samples=2, tau=0.0)
    assert method.respond(policy, ["1+1=", "2+2="]) == [",3", ",3"]
    # One beam follows the comma at once: sqrt(0.27) < sqrt(0.3) keeps the dot instead, and ends in .1.
    narrow = searcher(policy, beams=1, samples=2, tau=0.0)
    assert narrow.respond(policy, ["1+1="]) == [".1"]
    assert searcher(policy, beams=4, samples=2, tau=0.0, weight=1.0).respond(policy, ["1+1="]) == [".1"]
    # By confidence alone: .1: 0.1, .2: 0.4, ,3: 0.81, ,x: 0.9, which does not parse.
    assert searcher(policy, beams=4, samples=2, tau=0.0, weight=0.0).respond(policy, ["1+1="]) == [",3"]


def test_what_does_not_parse_is_answered_only_where_nothing_does() -> None:
    policy = Tables({"…": ["?", ".…"]}, {"?": -0.1, ".…": -2.0}, {"?": 0.9, ".…": 0.1})
    # The dot goes no further: it has ended as it is.
    assert searcher(policy, tau=0.0).respond(policy, ["1+1="]) == ["?"]


def test_beams_are_drawn_without_replacement_by_their_scores() -> None:
    method = searcher(Tables({}, {}, {}), beams=2, weight=1.0)
    beams = [Beam("a", math.log(0.5)), Beam("b", math.log(0.2)), Beam("c", math.log(0.9))]
    tau, n = 0.4, 20_000
    weight = {beam.text: math.exp(math.exp(beam.likely) / tau) for beam in beams}
    expected = {
        (one, two): weight[one] / sum(weight.values()) * weight[two] / (sum(weight.values()) - weight[one])
        for one, two in itertools.permutations(weight, 2)
    }
    found = Counter(tuple(beam.text for beam in method.select(beams, tau)) for _ in range(n))
    assert found.keys() == expected.keys()
    for pair, p in expected.items():
        assert found[pair] / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))
    assert [beam.text for beam in method.select(beams, 0.0)] == ["c", "a"]


def test_the_evaluator_learns_right_steps_from_others_in_their_place() -> None:
    policy = Tables({}, {}, {})
    method = searcher(policy, epochs=2)
    method.round(policy, Shown(), 1)
    method.round(policy, Shown(), 2)
    [(prompts, texts, right, epochs, _)] = policy.fitted
    found = dict(zip(zip(prompts, texts, strict=True), right, strict=True))
    expected = {("4+4=", ".…"): 1.0, ("4+4=", ".8"): 1.0, ("5+6=", ".…"): 1.0, ("5+6=", ".11"): 1.0}
    wrong = {("4+4=", ".11"): 0.0, ("5+6=", ".8"): 0.0}
    assert expected.items() <= found.items() <= (expected | wrong).items()
    assert epochs == 2
    searcher(policy, weight=1.0).round(policy, Shown(), 1)
    assert len(policy.fitted) == 1


def test_one_greedy_beam_is_greedy_decoding(play: Play) -> None:
    outcome = play(TreeSearch(beams=1, samples=1, temperature=0.0, weight=1.0)).outcome
    for point in outcome.curve:
        assert point.values["accuracy"] == point.values["plain_accuracy"]
    assert outcome.curve[-1].values["tokens"] == 0


def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play) -> None:
    whole = play(TreeSearch(temperature=1.5), folder="whole").outcome
    play(TreeSearch(temperature=1.5), folder="killed", stop_after=2)
    resumed = play(TreeSearch(temperature=1.5), folder="killed").outcome
    assert whole.curve == resumed.curve
    assert whole.predictions_sha256 == resumed.predictions_sha256
    # The policy stays what it is, and so does what it costs after the evaluator is trained.
    assert len({point.values["plain_accuracy"] for point in whole.curve}) == 1
    tokens = [point.values["tokens"] for point in whole.curve]
    assert tokens[0] == 0 < tokens[1] == tokens[2] == tokens[3]
    assert whole.diagnostics["answer_tokens"] > 30
