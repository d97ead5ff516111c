"""Judges at the gate, in real runs: what is used where it opens, and what is left where it stays shut."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.cream import prefers as cream_prefers
from selfbench.methods.self_rewarding.self_evolution import SELF
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood, prefers
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite import registry
from selfbench.suite.errors import MethodError
from selfbench.suite.protocols.policy_examples import Pair
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.registry import register_method
from selfbench.suite.run.gate import Gate
from tests.methods.self_rewarding.test_critique import add_words

Play = Callable[..., Any]
PROBED = 20


@pytest.fixture
def gated(tiny_task: type) -> Any:
    class Gated(tiny_task):
        """The last 20 problems of the pool are those of the gate."""

        vote_temperature = 1.0

        def problems(self, bundle: Any, seed: int) -> Any:
            found = super().problems(bundle, seed)
            return dataclasses.replace(found, pool=found.pool[:-PROBED], probe=found.pool[-PROBED:], probe_samples=8)

    return Gated()


@register_method("self-rewarding-likelihood", family="tests", protocol="policy", paper="-")
@dataclass
class Judged(PolicyMethod):
    """Asks the gate with a judge that adds, or that errs, and prefers where it opens."""

    wise: bool = True
    obeys: bool = True

    def round(self, policy: Any, view: Any, number: int) -> None:
        def judge(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
            right = [str(sum(map(int, prompt[:-1].split("+")))) for prompt in prompts]
            good = [2.0 * (one == truth) - 1.0 for one, truth in zip(first, right, strict=True)]
            assert all((one == truth) != (two == truth) for one, two, truth in zip(first, second, right, strict=True))
            return good if self.wise else [-value for value in good]

        self.opened = view.gate(policy, judge)
        if self.opened or not self.obeys:
            policy.prefer([Pair(view.prompts[0], "1", "2")], lr_scale=0.01)


def test_the_gate_opens_to_a_wise_judge_and_its_figures_stand_in_the_curve(play: Play, gated: Any) -> None:
    method = Judged()
    played = play(method, task=gated)
    assert method.opened
    first, *later = [point.values for point in played.outcome.curve]
    assert "gate_open" not in first
    for values in later:
        assert values["gate_open"] == values["gate_accuracy"] == values["gate_consistency"] == 1.0
        assert 5 <= values["gate_pairs"] <= PROBED
    assert played.outcome.diagnostics["gate_open"] == 1.0
    # Its labels are counted once a run.
    assert played.counts.labels == 24 + PROBED


def test_it_stays_shut_to_a_judge_that_errs_and_preferences_are_refused(play: Play, gated: Any) -> None:
    method = Judged(wise=False)
    played = play(method, task=gated)
    assert not method.opened
    assert [point.values["gate_accuracy"] for point in played.outcome.curve[1:]] == [0.0] * 3
    assert len({point.values["accuracy"] for point in played.outcome.curve}) == 1
    with pytest.raises(MethodError, match="whose gate is shut"):
        play(Judged(wise=False, obeys=False), task=gated, folder="disobeys")


def test_where_there_is_no_gate_nothing_is_asked(play: Play) -> None:
    method = Judged(wise=False)
    played = play(method)
    assert method.opened
    assert "probe" not in played.sent
    assert played.counts.labels == 24


def test_methods_without_a_judge_are_as_they_are_without_a_gate(play: Play, gated: Any) -> None:
    played = play(SFT(), task=gated)
    assert played.counts.labels == 24
    assert "gate_open" not in played.outcome.curve[-1].values


@pytest.mark.parametrize("make", [SelfRewardingLikelihood, CREAM])
def test_shut_gates_leave_the_policy_as_it_is(
    play: Play, gated: Any, monkeypatch: pytest.MonkeyPatch, make: type
) -> None:
    monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", -1.0)
    played = play(make(sft_epochs=1), task=gated, folder="shut")
    values = [point.values for point in played.outcome.curve]
    assert [value["gate_open"] for value in values[2:]] == [0.0] * 2
    assert values[1]["accuracy"] == values[2]["accuracy"] == values[3]["accuracy"]
    assert all(value["labels"] == 0 for value in values[2:])
    monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", 2.0)
    opened = play(make(sft_epochs=1), task=gated, folder="open").outcome.curve[-1].values
    assert opened["gate_open"] == 1.0
    assert opened["labels"] > 0


class WatchedCREAM(CREAM):
    """Remembers by which models' rewards the pairs of a round were made, and their labels."""

    __selfbench__ = CREAM.__selfbench__  # type: ignore[attr-defined]
    mute: tuple[int, ...] = ()
    """Rounds in which nothing that is sampled can be ranked."""

    def setup(self, policy: Any, view: Any) -> None:
        self.labels: list[list[float]] = []
        self.under: list[list[str]] = []

    def round(self, policy: Any, view: Any, number: int) -> None:
        generate, logprobs, prefer = policy.generate, policy.logprobs, policy.prefer
        asked: list[str] = []

        def single(prompts: Any, n: int, *rest: Any) -> Any:
            made = generate(prompts, n, *rest)
            return [["7"] for _ in made] if number in self.mute and prompts is view.prompts else made

        def heard(prompts: Any, responses: Any, mean: bool = False, under: str = "") -> Any:
            asked.append(f"{under}{', mean' if mean else ''}")
            return logprobs(prompts, responses, mean, under)

        def noted(pairs: Any, labels: Any, **rest: Any) -> float:
            self.labels.append(labels.tolist())
            # Those of the judge at the gate come first.
            self.under.append(asked[-3:])
            return prefer(pairs, labels, **rest)

        policy.generate, policy.logprobs, policy.prefer = single, heard, noted
        try:
            super().round(policy, view, number)
        finally:
            del policy.generate, policy.logprobs, policy.prefer


OPENED_LATE = {"shut": (-1.0, ()), "nothing to rank": (2.0, (2,))}


@pytest.mark.parametrize("case", list(OPENED_LATE))
def test_a_round_that_trains_nothing_is_no_iteration_of_cream(
    play: Play, gated: Any, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Rounds 2 and 4 are such rounds: 3 is the first iteration, measured against M_0, and 5 is measured against what
    3 began with."""
    level, mute = OPENED_LATE[case]
    gated.rounds = 5
    levels = iter([level, 2.0, level, 2.0])
    judged = Gate.judged

    def in_turn(self: Gate, verdicts: Any) -> bool:
        monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", next(levels))
        return judged(self, verdicts)

    monkeypatch.setattr(Gate, "judged", in_turn)
    method = WatchedCREAM(sft_epochs=1, dpo_lr=1.0)
    method.mute = (2, 4) if mute else ()
    values = [point.values for point in play(method, task=gated, folder=case.split()[0]).outcome.curve]
    assert [value["labels"] > 0 for value in values] == [False, False, False, True, False, True]
    assert values[1]["accuracy"] == values[2]["accuracy"]
    assert method.under == [["base", "", "base, mean"], ["base", "", "previous"]]
    # Other models agree, but not in all.
    assert all(0.0 < label < 1.0 for labels in method.labels for label in labels)


@pytest.mark.parametrize("stop", [2, 3])
def test_cream_that_opens_late_and_is_killed_goes_on(
    play: Play, gated: Any, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """What counts as the first iteration is part of a checkpoint."""
    gated.rounds = 4
    monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", 2.0)
    whole = play(Late(sft_epochs=1), task=gated, folder="whole")
    play(Late(sft_epochs=1), task=gated, folder="killed", stop_after=stop)
    resumed = play(Late(sft_epochs=1), task=gated, folder="killed")
    assert resumed.outcome.curve == whole.outcome.curve


class Late(CREAM):
    """Its gate is shut in round 2."""

    __selfbench__ = CREAM.__selfbench__  # type: ignore[attr-defined]

    def round(self, policy: Any, view: Any, number: int) -> None:
        gate = view.gate
        if number == 2:
            view.gate = lambda *asked: False
        try:
            super().round(policy, view, number)
        finally:
            view.gate = gate


@pytest.mark.parametrize("level", [-1.0, 2.0], ids=["shut", "open"])
@pytest.mark.parametrize("make", [SelfRewardingLikelihood, CREAM, SELF])
def test_gated_runs_that_are_killed_go_on(
    play: Play, gated: Any, monkeypatch: pytest.MonkeyPatch, make: type, level: float
) -> None:
    monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", level)
    task = add_words(type(gated))()
    whole = play(make(), task=task, folder="whole")
    for stop in (1, 2):
        play(make(), task=task, folder=f"killed{stop}", stop_after=stop)
        resumed = play(make(), task=task, folder=f"killed{stop}")
        assert resumed.outcome.curve == whole.outcome.curve
        assert resumed.counts.labels == whole.counts.labels == 24 + PROBED


def test_self_trains_on_skills_alone_where_the_gate_is_shut(
    play: Play, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = add_words(type(gated))()
    monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", -1.0)
    shut = play(SELF(), task=task, folder="shut").outcome.curve
    assert all(point.values["labels"] == 0 for point in shut)
    assert shut[2].values["gate_pairs"] > 0


def test_judges_by_hand() -> None:
    class Scores:
        def logprobs(self, prompts: Any, responses: Any, mean: bool = False, under: str = "") -> torch.Tensor:
            value = {"2": -1.0, "13": -3.0, "4": -2.0}
            return torch.tensor(
                [value[text] / (len(text) + 1 if mean else 1) * (1 + bool(under)) for text in responses]
            )

    asked = ["1+1=", "2+2="]
    # Means over tokens, the stop included: 2: -1/2, 13: -1, 4: -1.
    assert prefers(Scores(), asked, ["2", "13"], ["13", "4"]) == [0.5, 0.0]
    # log pi - log pi_0 = -log pi here.
    assert cream_prefers(Scores(), asked, ["2", "13"], ["13", "4"]) == [-2.0, 1.0]
    method = SELF()
    method.critic, method.approves = lambda prompt, text: text, lambda text: {"1": True, "0": False}.get(text)

    class Says:
        def generate(self, prompts: Sequence[str], n: int, temperature: float) -> list[list[str]]:
            return [["1" if text == "2" else "0" if text == "4" else "?"] for text in prompts]

    assert method.prefers(Says(), ["p"] * 3, ["2", "13", "13"], ["4", "2", "4"]) == [1, -1, 0]


def test_gate_problems_are_none_of_the_others(gated: Any, tiny_bundle: Any) -> None:
    problems = gated.problems(tiny_bundle, 0)
    with pytest.raises(ValueError, match="may not be among the others"):
        dataclasses.replace(problems, probe=np.array([problems.pool[0]]))
    with pytest.raises(ValueError, match="may not be among the others"):
        dataclasses.replace(problems, probe=np.array([problems.test[0]]))


def test_registrations_say_who_asks_the_gate_and_where_there_is_one() -> None:
    """What boards mark methods by is what the code does."""
    for entry in registry.entries("method").values():
        if entry.module:
            asks = "view.gate(" in inspect.getsource(entry.load())
            assert entry.options["own_judge"] == asks, entry.name
    for entry in registry.entries("task").values():
        if entry.module and entry.protocol == "policy":
            gated = any("probe=" in inspect.getsource(cls.problems) for cls in entry.load().__mro__[:-1]
                        if "problems" in vars(cls))  # fmt: skip
            assert ("judge-gate" in entry.options["tags"]) == gated, entry.name
