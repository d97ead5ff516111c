"""Whole runs on a tiny task, through the real loop and the real scorer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.common.responses import distinct_parsed, refit
from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.oracle_answers import OracleAnswers
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.self_consistency import SelfConsistency
from selfbench.methods.self_rewarding.self_distillation import SelfDistillation
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood
from selfbench.methods.self_rewarding.sft import SFT, SFTMatched
from selfbench.methods.self_rewarding.star import STaR
from selfbench.suite.errors import MethodError
from selfbench.suite.meter import Counts
from selfbench.suite.protocols.policy_examples import Example, Pair
from selfbench.suite.protocols.policy_grants import Attempts, Critique, Grants, Verifier
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.policy_view import PolicyView
from selfbench.suite.registry import register_method

Play = Callable[..., Any]
METHODS = [
    SFT(), SFTMatched(), SelfDistillation(), OracleAnswers(), ReSTEM(), STaR(), SelfConsistency(),
    SelfRewardingLikelihood(temperature=1.5), CREAM(temperature=1.5),
]  # fmt: skip
UNVERIFIED = [method for method in METHODS if not type(method).__selfbench__["needs"]]


def _probe(method: type) -> type:
    return register_method("sft", family="tests", protocol="policy", paper="-")(dataclass(method))


def same(one: Any, two: Any) -> None:
    assert one.outcome.curve == two.outcome.curve
    assert one.outcome.predictions_sha256 == two.outcome.predictions_sha256
    assert one.outcome.diagnostics == two.outcome.diagnostics
    assert dataclasses.replace(one.counts, seconds=0) == dataclasses.replace(two.counts, seconds=0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, method: PolicyMethod) -> None:
    whole = play(dataclasses.replace(method), folder="whole")
    assert [point.x for point in whole.outcome.curve] == [0, 1, 2, 3]
    killed = play(dataclasses.replace(method), folder="killed", stop_after=2)
    resumed = play(dataclasses.replace(method), folder="killed")
    same(whole, resumed)
    # What was finished before the kill was not done again.
    assert (killed.sent.count("round"), resumed.sent.count("round")) == (3, 1)
    assert whole.counts.tokens == sum(apart(whole.counts)) > 0
    other = play(dataclasses.replace(method), folder="other", seed=1)
    assert other.outcome.predictions_sha256 != whole.outcome.predictions_sha256


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_hidden_answers_move_no_prediction(play: Play, method: PolicyMethod) -> None:
    usual = play(dataclasses.replace(method), folder="usual")
    permuted = play(dataclasses.replace(method), folder="permuted", permute=1)
    assert permuted.outcome.predictions_sha256 == usual.outcome.predictions_sha256
    assert permuted.outcome.curve != usual.outcome.curve
    assert permuted.counts.tokens == usual.counts.tokens
    if method in UNVERIFIED and "label_precision" in usual.outcome.diagnostics:
        # Nothing told it of the pool's answers: what it was trained on is judged otherwise now, and it does not know.
        assert permuted.outcome.diagnostics["label_precision"] != usual.outcome.diagnostics["label_precision"]


def test_diagnostics_tell_right_labels_from_wrong_ones(play: Play) -> None:
    runs = {type(method).__name__: play(method, folder=str(at)).outcome for at, method in
            enumerate((OracleAnswers(), ReSTEM(), SelfDistillation()))}  # fmt: skip
    first = runs["ReSTEM"].curve[0].values
    assert runs["OracleAnswers"].diagnostics["label_precision"] == 1.0
    assert runs["OracleAnswers"].diagnostics["labels"] == 46
    assert runs["ReSTEM"].diagnostics["label_precision"] == 1.0
    assert runs["ReSTEM"].diagnostics["verdicts"] > 0
    assert runs["SelfDistillation"].diagnostics["label_precision"] < 1.0
    assert "label_precision" not in first
    for outcome in runs.values():
        values = outcome.curve[-1].values
        assert values["pass_at_k"] >= values["majority_accuracy"]
        assert 0 <= values["parse_rate"] <= 1
        assert 0 < values["distinct"] <= 1
        assert outcome.groups["accuracy"].keys() == {"carry", "no carry"}
        assert outcome.n == 30


@_probe
class Read(PolicyMethod):
    """Samples of the pool and of another prompt, feedback that can be read and feedback that cannot."""

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.prompts, self.approves, self.made = view.prompts, view.approves, []

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        policy.finetune(view.demonstrations)
        if number == 2:
            return
        self.made.append([text for group in policy.generate(view.prompts, 2, 1.5) for text in group])
        policy.generate([view.demonstrations[0].prompt], 64, 1.5)
        for feedback in ("1", "0", "neither"):
            view.approves(feedback)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        policy.generate(self.prompts, 1, 0.0)
        self.approves("neither")
        return ["7", "7…", "seven"] * (len(prompts) // 3)


def test_what_does_not_parse_is_counted(play: Play, tiny_task: type) -> None:
    """Among the responses that are scored, where there is no vote too, among own samples, and among own feedback."""

    class Words(tiny_task):
        votes = 0

        def grants(self) -> Grants:
            read = {"1": True, "0": False}.get
            words = Critique(lambda prompt, response: prompt, lambda right: "1", read)
            return dataclasses.replace(super().grants(), attempts=Attempts(lambda *shown: shown[0], words))

    method = Read()
    outcome = play(method, task=Words()).outcome
    assert outcome.metrics["response_parse_rate"] == pytest.approx(1 / 3)
    assert "parse_rate" not in outcome.metrics
    shares = [sum(Words().answer(text) is not None for text in made) / len(made) for made in method.made]
    assert len(method.made[0]) == 2 * 46
    assert any(0 < share < 1 for share in shares)
    found = [point.values.get("own_parse_rate") for point in outcome.curve]
    assert found == [None, shares[0], None, shares[1]]
    assert [point.values.get("feedback_parse_rate") for point in outcome.curve] == [None, 2 / 3, None, 2 / 3]
    assert outcome.diagnostics["own_parse_rate"] == shares[1]


def apart(counts: Counts) -> tuple[int, int, int]:
    """Tokens that were generated, scored and trained on."""
    found = counts.generated_tokens, counts.scored_tokens, counts.trained_tokens
    assert sum(found) == counts.tokens
    return found


@_probe
class Counted(PolicyMethod):
    """One of each call, on texts whose lengths are known."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        meter = view._meter
        steps = [apart(meter.counts)]

        def used() -> tuple[int, ...]:
            steps.append(apart(meter.counts))
            return tuple(now - before for now, before in zip(*steps[:-3:-1], strict=True))

        if number > 1:
            return
        made = policy.generate(view.prompts, 2, 1.0)
        # Three tokens at most: a response of three is cut off, or stops with its third.
        self.generated = used(), [text for group in made for text in group]
        policy.logprobs(["1+1=", "2+2="], ["2", "14"])
        self.scored = used()
        policy.finetune([Example("1+1=", "2"), Example("2+2=", "14")], epochs=3)
        self.tuned = used()
        policy.prefer([Pair("1+1=", "2", "13")], epochs=2)
        self.preferred = used()
        policy.prefer([Pair("1+1=", "2", "13")], reference="base")
        policy.prefer([Pair("1+1=", "2", "13")], reference="base")
        self.again = used()
        self.passes = meter.counts.forward, meter.counts.backward


def test_tokens_are_counted_exactly(play: Play) -> None:
    method = Counted()
    play(method)
    tokens, texts = method.generated
    assert tokens == (sum(3 if text.endswith("…") else len(text) + 1 for text in texts), 0, 0)
    one, two = 4 + 1 + 1, 4 + 2 + 1
    assert method.scored == (0, one + two, 0)
    assert method.tuned == (0, 0, 3 * (one + two))
    # The reference once, then two epochs; the second time the reference comes from the cache and counts all the same.
    assert method.preferred == (0, one + two, 2 * (one + two))
    assert method.again == (0, 2 * (one + two), 2 * (one + two))
    assert method.passes == (len(texts) + 2 + 6 + 2 + 4 + 2 * (2 + 2), 6 + 4 + 2 * 2)


@_probe
class Direction(PolicyMethod):
    """Trains a little and keeps the log-probabilities before and after."""

    labels: float = 1.0
    weight: float = 1.0

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number > 1:
            return
        prompts, texts = ["1+1=", "1+1="], ["2", "13"]
        self.before = policy.logprobs(prompts, texts)
        policy.prefer([Pair("1+1=", "2", "13")], labels=[self.labels], epochs=8)
        self.after = policy.logprobs(prompts, texts)
        policy.use("base")
        again = policy.logprobs(prompts, texts)
        assert torch.equal(again, self.before)
        policy.finetune(
            [Example("1+1=", "2"), Example("1+1=", "13")], weights=[self.weight, 1.0 - self.weight], epochs=8
        )
        self.tuned = policy.logprobs(prompts, texts)
        torch.testing.assert_close(policy.logprobs(prompts, texts, under="base"), self.before, rtol=0, atol=0)
        assert torch.equal(policy.logprobs(prompts, texts), self.tuned)


def test_training_moves_what_it_should(play: Play) -> None:
    tuned = []
    for labels, sign in ((1.0, 1), (0.0, -1)):
        method = Direction(labels=labels, weight=labels)
        play(method, folder=str(labels))
        moved = method.after - method.before
        assert sign * float(moved[0] - moved[1]) > 0.1
        tuned.append(method.tuned)
    # Weights of 0 leave an example out: each response is likelier after training on it than on the other one.
    assert float(tuned[0][0] - tuned[1][0]) > 0.1
    assert float(tuned[1][1] - tuned[0][1]) > 0.1


@_probe
class Spends(PolicyMethod):
    """Spends the budget in its second round."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        for _ in range(1000 if number == 2 else 1):
            policy.finetune(view.demonstrations)


def test_a_round_that_the_budget_ends_does_not_count(play: Play) -> None:
    played = play(Spends(), limit=5000)
    assert played.meter.ended
    assert played.counts.tokens <= 5000
    assert [point.x for point in played.outcome.curve] == [0, 1]
    [first] = play(SFT(), limit=10, folder="less").outcome.curve
    assert first == played.outcome.curve[0]


def test_the_oracle_rule_takes_the_best_round(play: Play) -> None:
    outcome = play(SelfDistillation(temperature=1.5), selection="oracle").outcome
    best = max(point.values["accuracy"] for point in outcome.curve)
    assert outcome.metrics["accuracy"] == best
    with pytest.raises(MethodError, match="needs a validation score"):
        play(SFT(), selection="validation", folder="other")


@_probe
class Asks(PolicyMethod):
    """Asks a verifier that it has not declared."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        view.verify([0], ["1"])


def test_an_undeclared_verifier_does_not_answer(play: Play) -> None:
    with pytest.raises(MethodError, match="has not declared"):
        play(Asks())


@_probe
class Reaches(PolicyMethod):
    """Uses what the task does not grant."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        asked = {
            "code": lambda: view.program("1"), "attempts": lambda: view.again("1+1=", "2"),
            "environment": lambda: view.revision, "references": lambda: view.ratings("2"),
        }  # fmt: skip
        for need, ask in asked.items():
            with pytest.raises(MethodError, match=f"'tested' uses what task 'tiny' does not grant: declare `{need}`"):
                ask()
        assert view.hinted("1+1=", "2") == "1+1?2="
        self.done = True


def test_what_a_task_does_not_grant_is_named(play: Play) -> None:
    method = Reaches()
    play(method)
    assert method.done


@register_method("rest-em", family="tests", protocol="policy", paper="-", needs=("verifier",))
@dataclass
class Searches(PolicyMethod):
    """Asks for one answer after the other until one is right."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        for answer in range(99):
            view.verify([0], [str(answer)])
            view.verify([0], [str(answer)])


def test_the_verifier_does_not_search(play: Play) -> None:
    with pytest.raises(MethodError, match="more than 30 answers to one prompt"):
        play(Searches())


@register_method("rest-em", family="tests", protocol="policy", paper="-", needs=("verifier",))
@dataclass
class AsksForAll(PolicyMethod):
    """ReST-EM whose every different response is sent to the verifier."""

    samples: int = 4
    temperature: float = 0.7

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        made = policy.generate(view.prompts, self.samples, self.temperature)
        tried = [(at, text) for at, texts in enumerate(made) for text in distinct_parsed(view, texts)]
        right = view.verify([at for at, _ in tried], [text for _, text in tried])
        good = [(at, text) for (at, text), is_right in zip(tried, right, strict=True) if is_right]
        own = [[text for number, text in good if number == at][:2] for at in range(len(view.prompts))]
        kept = [Example(prompt, text) for prompt, texts in zip(view.prompts, own, strict=True) for text in texts]
        refit(policy, view, kept, 4)


def test_rest_em_is_as_if_it_asked_for_all_where_verdicts_suffice(play: Play) -> None:
    one, two = play(ReSTEM(), folder="one"), play(AsksForAll(), folder="two")
    same(one, two)
    assert one.outcome.diagnostics["verdicts"] == two.outcome.diagnostics["verdicts"] > 46


def test_rest_em_runs_to_its_end_at_the_bounds_of_its_samples(play: Play, tiny_task: type) -> None:
    """Each prompt gets more different answers in a run than are judged."""

    class Few(tiny_task):
        def grants(self) -> Grants:
            return dataclasses.replace(super().grants(), verifier=Verifier(3))

    task = Few()
    played = play(ReSTEM(samples=32, temperature=1.5, epochs=1), task=task)
    assert len(played.outcome.curve) == task.rounds + 1
    # 46 prompts of the pool.
    assert played.outcome.diagnostics["verdicts"] == 3 * 46


@_probe
class Attacks(PolicyMethod):
    """Looks through everything it can reach for the answers of the evaluation."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number > 1:
            return
        self.found: list[str] = []
        seen: set[int] = set()
        todo: list[Any] = [policy, view]
        while todo:
            item = todo.pop()
            if id(item) in seen or isinstance(item, type) or (callable(item) and not hasattr(item, "__dict__")):
                continue
            seen.add(id(item))
            if isinstance(item, np.ndarray):
                self.found.append(str(item.tolist()))
            elif isinstance(item, str):
                self.found.append(item)
            elif isinstance(item, dict):
                todo += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, set)):
                todo += list(item)
                if item and all(isinstance(one, str) for one in item):
                    self.found.append(",".join(item))
            elif hasattr(item, "__dict__") and type(item).__module__.startswith("selfbench"):
                todo += list(vars(item).values())


def test_an_attacker_finds_no_answer(play: Play) -> None:
    method = Attacks()
    played = play(method)
    hidden = [played.scorer._test, played.scorer._pool]
    told = "\n".join(method.found)
    for answers in hidden:
        assert ",".join(answers[:6]) not in told
    # The walk is not blind: it finds the demonstrations' responses, which it may see.
    assert any("1" in text for text in method.found)
    assert played.scorer.plan()["answers"].size == played.scorer.plan()["solutions"].size == 0


@_probe
class Names(PolicyMethod):
    """Misuses names of kept weights."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        with pytest.raises(ValueError, match="no weights are kept"):
            policy.use("nothing")
        with pytest.raises(ValueError, match="cannot be kept"):
            policy.keep("base")
        for name in "abc":
            policy.keep(name)
        with pytest.raises(MethodError, match="forget one first"):
            policy.keep("d")
        policy.forget("a")
        policy.keep("d")
        with pytest.raises(ValueError, match="kept to the end"):
            policy.forget("base")
        policy.forget("d")
        with pytest.raises(ValueError, match="2 numbers of at least 0"):
            policy.finetune(view.demonstrations[:2], weights=[1.0, -1.0])
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            policy.prefer([Pair("1+1=", "2", "3")], labels=[1.5])
        assert policy.generate([]) == []
        assert len(policy.logprobs([], [])) == 0
        assert np.isnan(policy.finetune([]))
        assert np.isnan(policy.prefer([]))
        self.done = True


def test_misuse_is_explained(play: Play) -> None:
    method = Names()
    play(method)
    assert method.done


@pytest.mark.parametrize(("of", "says"), [(70, "is also shown to methods"), (20, "stands twice")])
def test_equal_prompts_of_shown_and_hidden_problems_are_refused(
    play: Play, tiny_task: type, of: int, says: str
) -> None:
    class Repeats(tiny_task):
        def prompts(self, public: Any, indices: Any) -> list[str]:
            return [f"{index % of}=" for index in indices.tolist()]

    with pytest.raises(MethodError, match=says):
        play(SFT(), task=Repeats())
