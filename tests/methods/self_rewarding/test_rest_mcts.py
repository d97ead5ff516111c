"""ReST-MCTS*: a search with a scripted policy and scripted values, what is trained on, and whole runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfbench.methods.common.mcts import Node, demonstrated
from selfbench.methods.self_rewarding.rest_mcts import ReSTMCTS
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.protocols.context import autocast
from selfbench.suite.protocols.language_model import last_logits
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.policy_view import PolicyView
from selfbench.suite.protocols.sequences import join
from selfbench.suite.registry import register_method

Play = Callable[..., Any]
SOLUTIONS = {"1+1=": ".2", "2+3=": ".5", "9+9=": ".18"}


@dataclass
class Stepper:
    """A policy whose next steps are given by what is there already, and a value model that is a table."""

    after: dict[str, list[str]]
    table: dict[str, float]
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    valued: list[tuple[str, str]] = field(default_factory=list)
    fitted: list[tuple[Any, ...]] = field(default_factory=list)

    def value_model(self) -> Stepper:
        return self

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int = 1, *rest: Any) -> list[list[str]]:
        self.calls.append(("step", list(prompts), list(begun), n))
        return [self.after.get(text, [])[:n] for text in begun]

    def values(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        self.valued += zip(prompts, responses, strict=True)
        return torch.tensor([self.table[text] for text in responses], dtype=torch.float64)

    def fit(self, *args: Any) -> float:
        self.fitted.append(args)
        return 0.0

    def finetune(self, examples: Sequence[Example], epochs: int = 1, **rest: Any) -> float:
        self.calls.append(("finetune", [tuple(example) for example in examples], epochs))
        return 0.0

    def use(self, name: str) -> None:
        self.calls.append(("use", name))


def test_two_rounds_of_a_search_by_hand() -> None:
    policy = Stepper(
        {"…": ["a…", "b…", "a…"], "a…": ["a1", "ac…"], "ac…": ["ac2"], "b…": ["b3", "b3", "b4"]},
        {"a…": 0.6, "b…": 0.5, "a1": 0.3, "ac…": 0.9, "ac2": 0.7, "b3": 0.2, "b4": 0.8},
    )
    method = ReSTMCTS(iterations=2, branch=3, roll=3, alpha=0.5)
    method.setup(policy, None)
    [tree] = method.search(policy, ["1+1="])
    a, b = tree.children
    # First the root grows a and b; from a, one step a time, the simulation takes a1 and ends: 0.5 0.6 + 0.5 0.3.
    # Then b, unvisited, has the larger bound and grows; from b4 it ends at once, with its own value.
    assert (a.text, a.visits, b.text, b.visits) == ("a…", 1, "b…", 1)
    assert a.value == pytest.approx(0.45)
    assert [(node.text, node.value, node.visits, node.ended) for node in b.children] == [
        ("b3", 0.2, 0, True), ("b4", 0.8, 1, True),
    ]  # fmt: skip
    assert b.value == pytest.approx(0.8)
    assert tree.value == pytest.approx((0.45 + 0.8) / 2)
    assert tree.visits == 2
    assert not a.children
    steps = [call for call in policy.calls if call[0] == "step"]
    assert [(begun, n) for _, _, begun, n in steps if begun] == [(["…"], 3), (["a…"], 1), (["b…"], 3)]
    # Equal steps are one child, and nothing is valued twice.
    assert len(policy.valued) == len(set(policy.valued))


def test_many_trees_grow_as_each_alone() -> None:
    draw = np.random.default_rng(0)
    after: dict[str, list[str]] = {}
    table: dict[str, float] = {}
    todo = ["…"]
    while todo:
        text = todo.pop()
        for name in "xyz":
            end = len(text) > 3 or draw.random() < 0.2
            child = text[:-1] + name + ("" if end else "…")
            after.setdefault(text, []).append(child)
            table[child] = float(draw.random())
            if not end:
                todo.append(child)
    together = ReSTMCTS(iterations=9)
    together.setup(Stepper(after, table), None)
    trees = together.search(together.value, ["1+1=", "2+3=", "9+9="])
    alone = ReSTMCTS(iterations=9)
    alone.setup(Stepper(after, table), None)
    [single] = alone.search(alone.value, ["2+3="])

    def told(tree: Node) -> list[tuple[Any, ...]]:
        return [(node.text, node.value, node.visits, node.ended) for node in tree.walk()]

    assert told(trees[0]) == told(trees[1]) == told(trees[2]) == told(single)
    assert len(told(single)) > 15


class Answers:
    """A view of three prompts whose responses begin with a dot."""

    prompts = tuple(SOLUTIONS)
    demonstrations = (Example("4+4=", ".8"), Example("5+6=", ".11"))
    rounds, verdicts = 3, 9

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.asked: list[tuple[int, str]] = []

    @staticmethod
    def parse(response: str) -> str | None:
        return response[1:] if response[1:].isdigit() else None

    @staticmethod
    def steps(response: str) -> list[str]:
        return [response[:1], response[1:]]

    def verify(self, numbers: Sequence[int], responses: Sequence[str]) -> list[bool]:
        self.asked += zip(numbers, responses, strict=True)
        return [list(SOLUTIONS.values())[at] == text for at, text in zip(numbers, responses, strict=True)]


def test_a_round_trains_on_accepted_responses_and_on_inferred_values() -> None:
    table = {".…": 0.4, ".2": 0.7, ".5": 0.15, ".18": 0.9, ".3": 0.3, ".x": 0.8, ".1…": 0.1}
    policy = Stepper({"…": [".…"], ".…": [".2", ".5", ".18", ".3", ".x", ".1…"]}, table)
    method = ReSTMCTS(iterations=2, branch=6, gate=0.2, epochs=5, value_epochs=2)
    view = Answers()
    method.setup(policy, view)
    method.round(policy, view, 2)
    # Three answers a round and prompt may be asked, the highest values first; what does not parse is not asked.
    assert [text for at, text in view.asked if at == 0] == [".18", ".2", ".3"]
    # .5 was not asked, as its value is low: nothing is known of the second prompt.
    shown = [("4+4=", ".8"), ("5+6=", ".11")]
    assert policy.calls[-2:] == [("use", "base"), ("finetune", [*shown, ("1+1=", ".2"), ("9+9=", ".18")], 5)]
    [(prompts, texts, targets, epochs, lr)] = policy.fitted
    found = {(prompt, text): target for prompt, text, target in zip(prompts, texts, targets, strict=True)}
    # v = 1/2 after the dot, then 1 where right, 1/2 - (1/2) / 2 where wrong, .x among them.
    bad = dict.fromkeys([".3", ".x"], 0.25)
    expected = {(p, ".…"): 0.5 for p in ("1+1=", "9+9=")}
    expected |= {("1+1=", t): v for t, v in ({".2": 1.0, ".18": 0.25} | bad).items()}
    expected |= {("9+9=", t): v for t, v in ({".18": 1.0, ".2": 0.25} | bad).items()}
    assert found == pytest.approx(expected)
    assert (epochs, lr) == (2, 1.0)


def test_the_gate_and_the_cutoff_choose_among_accepted_responses() -> None:
    tree = Node()
    for text, value, verdict in ((".2", 0.3, True), (".02", 0.9, True), (".002", 0.1, True), (".3", 0.95, False)):
        tree.add(text, value).verdict = verdict
    assert [node.text for node in ReSTMCTS(cutoff=5, gate=0.2).accepted(tree)] == [".02", ".2"]
    assert [node.text for node in ReSTMCTS(cutoff=1, gate=0.0).accepted(tree)] == [".02"]


def test_first_values_are_of_the_demonstrations_and_of_wrong_steps() -> None:
    policy = Stepper({}, {})
    method, view = ReSTMCTS(iterations=1, value_sft_epochs=4), Answers()
    method.setup(policy, view)
    method.round(policy, view, 1)
    prompts, texts, targets, epochs, _ = policy.fitted[0]
    found = dict(zip(zip(prompts, texts, strict=True), targets, strict=True))
    expected = {("4+4=", ".…"): 0.5, ("4+4=", ".8"): 1.0, ("5+6=", ".…"): 0.5, ("5+6=", ".11"): 1.0}
    wrong = {("4+4=", ".11"): 0.25, ("5+6=", ".8"): 0.25}
    assert expected.items() <= found.items() <= (expected | wrong).items()
    assert epochs == 4
    steps = [view.steps(example.response) for example in view.demonstrations]
    drawn = [demonstrated(steps, view.generator) for _ in range(10)]
    texts_drawn = {node.text for trees in drawn for tree in trees for node in tree.walk() if node.verdict is False}
    assert texts_drawn == {".11", ".8"}


def same(one: Any, two: Any) -> None:
    assert one.outcome.curve == two.outcome.curve
    assert one.outcome.predictions_sha256 == two.outcome.predictions_sha256
    assert one.outcome.diagnostics == two.outcome.diagnostics
    assert dataclasses.replace(one.counts, seconds=0) == dataclasses.replace(two.counts, seconds=0)


def test_killed_runs_go_on_with_their_value_model(play: Play) -> None:
    whole = play(ReSTMCTS(iterations=3), folder="whole")
    play(ReSTMCTS(iterations=3), folder="killed", stop_after=2)
    resumed = play(ReSTMCTS(iterations=3), folder="killed")
    same(whole, resumed)
    assert whole.outcome.diagnostics["label_precision"] == 1.0
    assert whole.outcome.diagnostics["labels"] > 5


def test_without_a_search_it_is_fine_tuning_of_the_first_policy(play: Play) -> None:
    [_, first, *_] = play(ReSTMCTS(iterations=0, epochs=3), folder="none").outcome.curve
    [_, tuned, *_] = play(SFT(epochs=3), folder="sft").outcome.curve
    assert first == tuned


@register_method("sft", family="tests", protocol="policy", paper="-")
@dataclass
class Values(PolicyMethod):
    """Fits a value model and keeps what it says and what it cost."""

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.value = policy.value_model()

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number > 1:
            return
        counts = view._meter.counts
        prompts, texts, targets = ["1+1=", "1+1=", "2+2="], ["2", "…", "1…"], [1.0, 0.5, 0.0]
        before = policy.logprobs(["1+1="], ["2"])
        assert self.value.values(prompts, texts).tolist() == [0.0, 0.0, 0.0]
        tokens, forward, backward = counts.tokens, counts.forward, counts.backward
        self.value.fit(prompts, texts, targets, epochs=60, lr_scale=10.0)
        # Prompts of 4, then: 2 and its stop symbol, nothing, one digit.
        assert counts.tokens - tokens == 60 * (6 + 4 + 5)
        assert (counts.forward - forward, counts.backward - backward) == (60 * 3, 60 * 3)
        found = self.value.values(prompts, texts)
        assert counts.tokens - tokens == 61 * (6 + 4 + 5)
        torch.testing.assert_close(found, torch.tensor(targets, dtype=torch.float64), rtol=0, atol=0.1)
        # The policy is another model, and its weights are as they were.
        assert torch.equal(policy.logprobs(["1+1="], ["2"]), before)
        other = policy.value_model()
        other.load_state_dict(self.value.state_dict())
        assert torch.equal(other.values(prompts, texts), found)
        assert np.isnan(self.value.fit([], [], []))
        assert len(self.value.values([], [])) == 0
        # A new head says 0: the loss of the first batch is the mean of the squared targets.
        assert policy.value_model().fit(prompts, texts, targets) == pytest.approx((1.0 + 0.25) / 3, abs=1e-6)
        self.done = True


def test_a_value_model_learns_beside_the_policy(play: Play) -> None:
    method = Values()
    play(method)
    assert method.done


def test_values_are_float32_where_a_run_is_bf16(play: Play) -> None:
    """The passes of the model are bf16; its head, a sum over the vocabulary, is not, in `values` and in `fit`."""
    found: list[tuple[Tensor, Tensor]] = []

    @register_method("sft", family="tests", protocol="policy", paper="-")
    @dataclass
    class Looks(PolicyMethod):
        def setup(self, policy: Policy, view: PolicyView) -> None:
            self.value = policy.value_model()

        def round(self, policy: Policy, view: PolicyView, number: int) -> None:
            value, prompts = self.value, view.prompts
            with torch.no_grad():
                value._slope.copy_(torch.linspace(-0.011, 0.013, len(value._slope)))
                value._offset.fill_(0.5003)
            sequences = join(value._tokenizer, prompts, ["7"] * len(prompts))
            every = np.arange(len(prompts))
            with torch.no_grad(), autocast(policy._calls.context):
                assert torch.is_autocast_enabled("cpu")
                logits = last_logits(value._model, sequences.ids, sequences.lengths, 0, torch.device("cpu"))
                predicted = value._predict(sequences, every)
            found.append((predicted, logits @ value._slope + value._offset))
            found.append((value.values(prompts, ["7"] * len(prompts)).float(), found[0][1].clamp(0.0, 1.0)))

    play(Looks(), precision="bf16")
    for predicted, exact in found[:2]:
        assert predicted.dtype == torch.float32
        assert len(exact.unique()) > 10
        torch.testing.assert_close(predicted, exact, rtol=0.0, atol=1e-5)
