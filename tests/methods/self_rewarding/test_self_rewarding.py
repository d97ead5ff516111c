"""The policy as its own judge: pairs against a slow loop, unparsed judgements, whole runs, the words of tasks."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from selfbench.methods.common.responses import best_and_worst
from selfbench.methods.self_rewarding.self_rewarding import SelfRewarding, worked_judgements
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.places import data_folder
from selfbench.suite.protocols.policy import PolicyTask, Problems
from selfbench.suite.protocols.policy_examples import Example, Pair
from selfbench.suite.protocols.policy_grants import Grants, JudgePrompt
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.addition_smol import AdditionSmol
from selfbench.tasks.language.arithmetic_tiny import ArithmeticTiny
from selfbench.tasks.language.multiple_choice import MultipleChoice

Play = Callable[..., Any]
JUDGE = JudgePrompt(
    judge=lambda prompt, response: f"{prompt[:-1]}={response}?",
    points=lambda text: float(text) if re.fullmatch("[0-5]", text) else None,
    judgement=lambda right: "5" if all(right) else "1",
    max_new=2,
)
"""`3+4=7?` -> `5`"""


class Scripted:
    """A policy whose samples and judgements are given."""

    def __init__(self, samples: Any, judgements: Callable[[str], list[str]]) -> None:
        self.samples, self.judgements = samples, judgements
        self.asked: list[Any] = []
        self.pairs: list[Any] = []
        self.rest: Any = None

    def generate(
        self, prompts: Sequence[str], n: int, temperature: float, top_p: float, max_new: int = 0
    ) -> list[list[str]]:
        self.asked.append((list(prompts), n, temperature, top_p, max_new))
        return [self.judgements(prompt)[:n] for prompt in prompts] if max_new else self.samples

    def prefer(self, pairs: Sequence[Pair], **rest: Any) -> float:
        self.pairs, self.rest = [tuple(pair) for pair in pairs], rest
        return 0.0


@pytest.fixture
def shown(view: Any) -> Any:
    """The three prompts of `view`, with the judge's words."""
    view.judge, view.judgement, view.judgement_tokens = JUDGE.judge, JUDGE.judgement, JUDGE.max_new
    view.points = lambda texts: [JUDGE.points(text) for text in texts]
    return view


@pytest.fixture
def task(tiny_task: type[PolicyTask]) -> PolicyTask:
    class Judged(tiny_task):  # type: ignore[misc, valid-type]
        def grants(self) -> Grants:
            return dataclasses.replace(super().grants(), judge=JUDGE)

    return Judged()


def test_pairs_are_those_of_a_slow_loop(shown: Any) -> None:
    draw = np.random.default_rng(0)
    words = ["0", "1", "2", "3", "4", "5", "6", "x", "", "3…", "33"]
    paired = 0
    for _ in range(200):
        made = [[str(text) for text in draw.choice(["1", "2", "12", "x", "7…"], 4)] for _ in shown.prompts]
        said = {
            JUDGE.judge(prompt, text): [str(word) for word in draw.choice(words, 3)]
            for prompt in shown.prompts
            for text in ("1", "2", "12")
        }
        policy = Scripted(made, said.__getitem__)
        SelfRewarding().round(policy, shown, 2)
        expected = []
        for prompt, texts in zip(shown.prompts, made, strict=True):
            rewards: dict[str, float] = {}
            for text in texts:
                if shown.parse(text) is None:
                    continue
                given = [
                    int(word) for word in said[JUDGE.judge(prompt, text)] if word in ("0", "1", "2", "3", "4", "5")
                ]
                if given:
                    rewards.setdefault(text, float(np.mean(given)))
            if rewards and max(rewards.values()) > min(rewards.values()):
                best, worst = max(rewards, key=rewards.__getitem__), min(rewards, key=rewards.__getitem__)
                expected.append((prompt, best, worst))
        assert policy.pairs == expected
        paired += len(expected)
        assert policy.rest == {"beta": 0.1, "epochs": 1, "lr_scale": 0.005}
        first, second = policy.asked
        assert first == (list(shown.prompts), 4, 0.7, 0.9, 0)
        assert second[1:] == (3, 0.7, 0.9, 2)
        # Each different response that parses is judged once.
        assert len(set(second[0])) == len(second[0])
    assert paired > 100


def test_points_are_averaged_over_the_judgements_that_parse(shown: Any) -> None:
    said = {"1+1=2?": ["5", "x", "2"], "1+1=3?": ["4", "4", "4"], "1+1=4?": ["x", "…", ""]}
    policy = Scripted([["2", "3", "4", "4"], ["x"], ["1…"]], said.__getitem__)
    SelfRewarding().round(policy, shown, 2)
    # 3.5, 4, and nothing: what no judgement gives points to is neither the best nor the worst.
    assert policy.pairs == [("1+1=", "3", "2")]


def test_ties_and_what_has_no_points_give_no_pair() -> None:
    prompts = ["a", "b", "c", "d", "e"]
    groups = [["1", "2"], ["1", "2"], ["1", "2"], [], ["1", "2", "3"]]
    found = best_and_worst(prompts, groups, [3.0, 3.0, 3.0, None, None, None, 2.0, 1.0, 2.0])
    assert found == [Pair("e", "1", "2")]
    for says in (["3", "3", "3"], ["x", "x", "x"]):
        policy = Scripted([["1", "2", "3", "4"]] * 3, lambda prompt, says=says: says)  # type: ignore[misc]
        SelfRewarding().round(policy, SimpleView(), 2)
        assert policy.pairs == []


class SimpleView:
    prompts = ("1+1=", "2+3=", "9+9=")
    judge, judgement_tokens = staticmethod(JUDGE.judge), JUDGE.max_new
    points = staticmethod(lambda texts: [JUDGE.points(text) for text in texts])
    parse = staticmethod(lambda text: text)
    gate = staticmethod(lambda policy, judge: True)


def test_the_gate_is_asked_with_differences_of_points(shown: Any) -> None:
    said = {"1+1=2?": ["5", "4", "x"], "1+1=3?": ["1", "1", "1"], "2+3=5?": ["x", "x", "x"], "2+3=6?": ["5", "5", "5"]}
    policy = Scripted([], said.__getitem__)
    asked: list[Any] = []

    def gate(policy: Any, judge: Any) -> bool:
        asked.append(judge(["1+1=", "2+3="], ["2", "5"], ["3", "6"]))
        return False

    shown.gate = gate
    SelfRewarding().round(policy, shown, 2)
    assert asked == [[3.5, 0.0]]
    assert policy.rest is None, "where it stays shut nothing is preferred"


def test_worked_judgements_are_of_right_and_flawed_demonstrations(play: Play, task: PolicyTask) -> None:
    seen: list[Example] = []

    class Looks(SelfRewarding):
        def round(self, policy: Any, view: Any, number: int) -> None:
            if number == 1:
                seen.extend(worked_judgements(policy, view, 0.7))

    play(Looks(), task=task)
    right = [one for one in seen if one.response == "5"]
    wrong = [one for one in seen if one.response == "1"]
    assert len(right) == 24
    assert len(wrong) > 12
    for one in seen:
        terms, answer = one.prompt[:-1].split("=")
        assert (sum(map(int, terms.split("+"))) == int(answer)) == (one.response == "5")


def test_round_one_is_one_training_on_demonstrations_and_judgements(
    play: Play, task: PolicyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    real = Policy.finetune

    def finetune(self: Policy, examples: Sequence[Example], *args: Any, **more: Any) -> float:
        told.append((Counter(map(tuple, examples)), more))
        return real(self, examples, *args, **more)

    monkeypatch.setattr(Policy, "finetune", finetune)
    play(SelfRewarding(sft_epochs=3, judge_epochs=2, judgements=0), task=task)
    [(examples, more)] = told
    assert more == {}
    shown = {one: times for one, times in examples.items() if "?" not in one[0]}
    worked = {one: times for one, times in examples.items() if "?" in one[0]}
    assert len(shown) == 24
    assert set(shown.values()) == {3}
    assert len(worked) > 36
    assert set(worked.values()) == {2}


def test_without_judgements_it_is_what_self_rewarding_begins_with(play: Play, task: PolicyTask) -> None:
    usual = play(SelfRewardingLikelihood(), task=task, folder="usual").outcome
    nothing = play(SelfRewarding(judgements=0, judge_epochs=0), task=task, folder="nothing").outcome
    assert nothing.curve[:2] == usual.curve[:2]
    # The same weights to the end, and as much work as one round of fine-tuning.
    once = play(SFT(epochs=16), task=task, folder="once").outcome
    assert nothing.curve[1] == once.curve[1]
    for point in nothing.curve[2:]:
        assert {name: point.values[name] for name in ("accuracy", "tokens")} == {
            name: nothing.curve[1].values[name] for name in ("accuracy", "tokens")
        }
    assert "judgement_parse_rate" not in nothing.diagnostics
    judged = play(SelfRewarding(judge_epochs=0), task=task, folder="judged").outcome
    assert judged.curve[1] == usual.curve[1]
    assert judged.curve[2:] != usual.curve[2:]


def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, task: PolicyTask) -> None:
    method = SelfRewarding(temperature=1.5, judge_epochs=8)
    whole = play(dataclasses.replace(method), task=task, folder="whole")
    play(dataclasses.replace(method), task=task, folder="killed", stop_after=2)
    resumed = play(dataclasses.replace(method), task=task, folder="killed")
    assert whole.outcome == resumed.outcome
    assert whole.counts.tokens == resumed.counts.tokens
    # What is right in the pool it is not told.
    permuted = play(dataclasses.replace(method), task=task, folder="permuted", permute=1)
    assert permuted.outcome.predictions_sha256 == whole.outcome.predictions_sha256
    assert permuted.outcome.curve != whole.outcome.curve
    other = play(dataclasses.replace(method), task=task, folder="other", seed=1)
    assert other.outcome.predictions_sha256 != whole.outcome.predictions_sha256
    first, second, *later = [point.values for point in whole.outcome.curve]
    assert "judgement_parse_rate" not in first
    assert "judgement_parse_rate" not in second
    for values in later:
        # A judgement that it has learned to write mostly parses.
        assert 0.5 < values["judgement_parse_rate"] <= 1.0
        assert values["labels"] > 0
    assert whole.outcome.diagnostics["judgement_parse_rate"] == later[-1]["judgement_parse_rate"]


def test_judgements_that_do_not_parse_leave_the_policy_as_it_is(play: Play, tiny_task: type[PolicyTask]) -> None:
    class Mute(tiny_task):  # type: ignore[misc, valid-type]
        def grants(self) -> Grants:
            return dataclasses.replace(super().grants(), judge=dataclasses.replace(JUDGE, points=lambda text: None))

    outcome = play(SelfRewarding(temperature=1.5), task=Mute()).outcome
    assert outcome.diagnostics["judgement_parse_rate"] == 0.0
    assert len({point.values["accuracy"] for point in outcome.curve[1:]}) == 1
    assert outcome.diagnostics["labels"] == 0


def test_a_judge_that_cannot_add_does_not_pass_the_gate(play: Play, task: PolicyTask) -> None:
    class Gated(type(task)):  # type: ignore[misc]
        vote_temperature = 1.0

        def problems(self, bundle: Any, seed: int) -> Any:
            found = super().problems(bundle, seed)
            return dataclasses.replace(found, pool=found.pool[:-20], probe=found.pool[-20:], probe_samples=8)

    outcome = play(SelfRewarding(), task=Gated()).outcome
    for point in outcome.curve[2:]:
        assert point.values["gate_pairs"] > 0
        assert point.values["judgement_parse_rate"] > 0
        assert point.values["gate_open"] == 0.0
        assert point.values["labels"] == 0


def test_a_method_says_after_how_many_tokens_its_responses_are_cut_off(play: Play, task: PolicyTask) -> None:
    seen: list[Any] = []

    class Looks(SelfRewarding):
        def round(self, policy: Any, view: Any, number: int) -> None:
            for most in (0, 1, 6):
                made = policy.generate(view.prompts, 1, 2.0, max_new=most)
                seen.append(max(len(text.removesuffix(CUT_OFF)) for [text] in made))

    play(Looks(), task=task)
    assert seen[0] <= 3
    assert seen[1] == 1
    assert 3 < seen[2] <= 6


ADDS = ArithmeticTiny()


def test_points_of_the_additions_add_up() -> None:
    points = [ADDS.judgement([a, b, c]) for a in (False, True) for b in (False, True) for c in (False, True)]
    assert points == ["^^^=1", "^^.=2", "^.^=2", "^..=3", ".^^=2", ".^.=3", "..^=3", "...=5"]
    assert [ADDS.points(text) for text in points] == [1, 2, 2, 3, 2, 3, 3, 5]
    for text in ("..=3", "...=6", "...=5.", "...5", "...=", "", "...=5…"):
        assert ADDS.points(text) is None
    asked = ADDS.judge("47+85=", "2^3^=132")
    assert asked == "47+85?2^3^=132^"
    # No other words of the task are these.
    assert asked not in (ADDS.critic("47+85=", "2^3^=132"), ADDS.again("47+85=", "2^3^=132"))
    assert ADDS.tokenizer().encode([asked])[1][0] + ADDS.max_new <= 64


class Sums(AdditionSmol):
    model_name = "qwen25-05b-instruct"
    gate = None
    rank, first_epochs, votes, rounds, max_new, judgement_tokens = 2, 1, 1, 2, 60, 9

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return Problems(whole.demonstrations[:3], whole.responses[:3], whole.pool[:4], whole.test[:5])

    def answer(self, response: str) -> str | None:
        """An untrained model writes no number: any text counts, cut off too, but for what is trained on."""
        return None if response.endswith(CUT_OFF) else str(len(response))


def test_a_chat_is_asked_by_a_rubric(tiny_hub_model: Path) -> None:
    task = Sums()
    end, begin = "<|im_end|>\n", "<|im_start|>"
    prompt = f"{begin}system\nAnswer with a number.{end}{begin}user\nWhat is 47 + 85?{end}{begin}assistant\n"
    asked = task.judge(prompt, "132")
    assert asked.startswith(
        f"{begin}system\nYou are a strict judge. You give the answer to a question 0 to 5 points, one"
    )
    assert asked.count("\n- ") == 5
    assert asked.endswith(
        "How it had to be answered: Answer with a number.\n\nQuestion: What is 47 + 85?\n\n"
        f"Answer: 132{end}{begin}assistant\n"
    )
    # What all questions share comes first, so that it is run once.
    other = task.judge(prompt.replace("47", "11"), "96")
    shared = next(at for at, (one, two) in enumerate(zip(asked, other, strict=False)) if one != two)
    assert asked[:shared].endswith("Question: What is ")


def test_options_are_judged_in_a_chat_though_they_are_asked_without(tiny_hub_model: Path) -> None:
    asked = MultipleChoice().judge("Question: Why?\nAnswer:", " Because.")
    assert asked.startswith("<|im_start|>system\nYou are a strict judge.")
    assert "\n\nQuestion: Why?\n\nAnswer: Because.<|im_end|>" in asked
    assert "How it had to be" not in asked


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("It is right. Score: 5", 5), ("Score: 0", 0), ("a\nb. Score: 3/5.\n", 3), ("Score: 1. Better: Score: 4", 4),
        ("Score: 6", None), ("Score: 10", None), ("Score: 4.5", None), ("Score: 4, I think", None),
        ("Score: 4…", None), ("Score: -1", None), ("score 4", None), ("", None), ("Underscore: 4", None),
    ],
)  # fmt: skip
def test_scores_are_read_strictly(text: str, points: float | None) -> None:
    assert Sums().points(text) == points


def test_worked_judgements_of_a_chat_parse() -> None:
    task = Sums()
    assert task.points(task.judgement([True])) == 5
    assert task.points(task.judgement([False])) == 2
    assert task.points(task.judgement([True, False])) == 2


def test_it_runs_on_a_pretrained_model(
    play: Play, tiny_hub_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    bundle = write_bundle(tmp_path / "bundle", Sums().build(Data(data_folder())))
    asked: list[Any] = []
    real = Policy.generate

    def generate(self: Policy, prompts: Sequence[str], *args: Any, **more: Any) -> Any:
        made = real(self, prompts, *args, **more)
        asked.append(SimpleNamespace(prompts=list(prompts), more=more, made=made))
        return made

    monkeypatch.setattr(Policy, "generate", generate)
    outcome = play(SelfRewarding(sft_epochs=1, judge_epochs=1, temperature=1.5), task=Sums(), bundle=bundle).outcome
    [judged] = [one for one in asked if one.more.get("max_new") == 9]
    assert [point.x for point in outcome.curve] == [0, 1, 2]
    assert judged.prompts
    assert all("You are a strict judge." in prompt for prompt in judged.prompts)
    # Untrained, it says nothing that can be read.
    assert outcome.diagnostics["judgement_parse_rate"] == 0.0
    assert outcome.diagnostics["labels"] == 0
