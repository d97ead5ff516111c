"""REINFORCE on sampled responses, answers in a method's own way, and SCoRe, against closed forms and slow loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.common.responses import judged
from selfbench.methods.self_rewarding.score import SCoRe
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.errors import MethodError
from selfbench.suite.protocols.optimisation import make_optimizer
from selfbench.suite.protocols.policy_examples import Example, Rollout
from selfbench.suite.protocols.policy_grants import Attempts, Critique, Grants
from selfbench.suite.protocols.policy_losses import reinforce_loss
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.policy_view import PolicyView
from selfbench.suite.registry import register_method

Play = Callable[..., Any]


@pytest.fixture
def two_turns(tiny_task: type) -> Any:
    """The tiny task, where a second attempt may be asked for: `3+4=`, `8` -> `3+4?8=`."""

    class TwoTurns(tiny_task):
        def grants(self) -> Grants:
            words = Critique(lambda prompt, response: prompt, lambda right: "", lambda feedback: None)
            return dataclasses.replace(super().grants(), attempts=Attempts(self.again, words))

        def again(self, prompt: str, response: str, feedback: str) -> str:
            return f"{prompt[:-1]}?{response.removesuffix('…')}="

    return TwoTurns()


def _probe(method: type) -> type:
    return register_method("sft", family="tests", protocol="policy", paper="-")(dataclass(method))


def test_reinforce_is_its_closed_form_with_its_gradient() -> None:
    draw = np.random.default_rng(0)
    n = 7
    logp, reference, rewards = (draw.normal(size=n) for _ in range(3))
    kl, group = draw.uniform(size=n), np.array([0, 2, 0, 2, 2, 0, 0])
    variable = torch.tensor(logp, requires_grad=True)
    loss = reinforce_loss(variable, *(torch.tensor(item) for item in (rewards, kl, reference, group)))
    loss.backward()
    paid = [rewards[i] - kl[i] * (logp[i] - reference[i]) for i in range(n)]
    advantage = [paid[i] - np.mean([paid[j] for j in range(n) if group[j] == group[i]]) for i in range(n)]
    assert loss.item() == pytest.approx(-sum(a * p for a, p in zip(advantage, logp, strict=True)) / n, abs=1e-10)
    np.testing.assert_allclose(variable.grad.numpy(), [-a / n for a in advantage], atol=1e-10)


def test_reinforce_pays_in_float32_under_autocast() -> None:
    draw = np.random.default_rng(1)
    logp, reference, rewards, kl = (torch.tensor(draw.normal(size=64), dtype=torch.float32) for _ in range(4))
    group = torch.zeros(64, dtype=torch.int64)
    usual = reinforce_loss(logp, rewards, kl, reference, group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reinforce_loss(logp, rewards, kl, reference, group), usual)


def rollouts() -> list[Rollout]:
    return [
        Rollout("1+1=", "2", 1.0, 0.5, 0), Rollout("1+1=", "13", 0.0, 0.5, 0), Rollout("12+1=", "4…", 0.25, 0.0, 3),
        Rollout("2+2=", "4", 1.0, 0.1, 3),
    ]  # fmt: skip


@_probe
class OneStep(PolicyMethod):
    """One step of REINFORCE by the harness, and the same by a loop over single sequences."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number > 1:
            return
        policy.finetune(view.demonstrations, epochs=2)
        model, meter, recipe = policy._model, view._meter, view._task.recipe
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        made = rollouts()
        whole = [not one.response.endswith("…") for one in made]
        reference = policy.logprobs([r.prompt for r in made], [r.response for r in made], under="base", unfinished=True)
        tokens, forward, backward = meter.counts.tokens, meter.counts.forward, meter.counts.backward
        mean = policy.reinforce(lambda: made, 1)
        assert mean == pytest.approx(2.25 / 4)
        lengths = [
            len(one.prompt) + len(one.response.removesuffix("…")) + w for one, w in zip(made, whole, strict=True)
        ]
        # The reference is asked of the three that are penalised.
        assert meter.counts.tokens - tokens == sum(lengths) + sum(lengths) - lengths[2]
        assert (meter.counts.forward - forward, meter.counts.backward - backward) == (4 + 3, 4)
        stepped = {name: value.detach().clone() for name, value in model.named_parameters()}

        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(before[name])
        model.train()
        logp = []
        for one, w in zip(made, whole, strict=True):
            text = one.prompt + one.response.removesuffix("…")
            ids = torch.tensor([policy._tokenizer.encode([text])[0][0].tolist() + [policy._tokenizer.stop] * w])
            table = model(input_ids=ids).logits[0].log_softmax(dim=1)
            places = range(len(one.prompt), ids.shape[1])
            logp.append(sum(table[at - 1, ids[0, at]] for at in places))
        paid = [one.reward - one.kl * float(p.detach() - r) for one, p, r in zip(made, logp, reference, strict=True)]
        advantage = [paid[0] - (paid[0] + paid[1]) / 2, paid[1] - (paid[0] + paid[1]) / 2]
        advantage += [paid[2] - (paid[2] + paid[3]) / 2, paid[3] - (paid[2] + paid[3]) / 2]
        loss = -sum(a * p for a, p in zip(advantage, logp, strict=True)) / 4
        parameters = list(model.parameters())
        optimizer = make_optimizer(recipe, parameters)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.schedule(0.5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()
        model.eval()
        # AdamW's first step is one of signs: where a gradient is nearly 0, rounding decides.
        moved = sum(float((stepped[name] - value).abs().gt(1e-4).sum()) for name, value in model.named_parameters())
        assert moved <= 0.01 * sum(value.numel() for value in parameters)
        assert any(not torch.equal(stepped[name], before[name]) for name in before)
        self.done = True


def test_a_step_is_that_of_a_slow_loop(play: Play) -> None:
    method = OneStep()
    play(method)
    assert method.done


@_probe
class Paid(PolicyMethod):
    """Pays one of two responses, or nothing but the likeness to the first policy."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number > 1:
            return
        prompts, texts = ["1+1=", "1+1="], ["2", "13"]
        before = policy.logprobs(prompts, texts)
        made = [Rollout(prompt, text, float(text == "13")) for prompt, text in zip(prompts, texts, strict=True)]
        policy.reinforce(lambda: made, 5)
        moved = policy.logprobs(prompts, texts) - before
        assert float(moved[1]) > float(moved[0])
        policy.use("base")
        for _ in range(2):
            policy.finetune([Example("1+1=", "13")], epochs=5)
        policy.keep("tuned")
        far = policy.logprobs(prompts, texts) - before
        pinned = [Rollout(prompt, text, 0.0, 1.0) for prompt, text in zip(prompts, texts, strict=True)]
        policy.reinforce(lambda: pinned, 5)
        near = policy.logprobs(prompts, texts) - before
        assert float(near[1] - near[0]) < float(far[1] - far[0])
        # With the tuned one as the reference there is nothing to take off, and equal rewards teach nothing.
        policy.use("tuned")
        policy.reinforce(lambda: pinned, 1, reference="tuned", lr_scale=0.0)
        assert torch.equal(policy.logprobs(prompts, texts) - before, far)
        assert np.isnan(policy.reinforce(lambda: pinned, 0))
        assert np.isnan(policy.reinforce(list, 2))
        self.done = True


def test_what_is_paid_becomes_likelier_and_the_kl_pulls_back(play: Play) -> None:
    method = Paid()
    play(method)
    assert method.done


@_probe
class Greedy(PolicyMethod):
    """Answers as the harness does, by its own call."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        policy.finetune(view.demonstrations, epochs=16)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        return [text for [text] in policy.generate(prompts, 1, 0.0)]


@_probe
class Says(Greedy):
    """Answers with a number, and spends tokens on it."""

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        policy.logprobs(["1+1="] * len(prompts), ["2"] * len(prompts))
        return ["7"] * len(prompts)


@_probe
class Misbehaves(Greedy):
    """Trains while it is evaluated, or forgets prompts."""

    how: str = "finetune"

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        acts: dict[str, Callable[[], Any]] = {
            "finetune": lambda: policy.finetune([Example("1+1=", "2")]),
            "reinforce": lambda: policy.reinforce(rollouts, 1),
            "keep": lambda: policy.keep("a"),
            "use": lambda: policy.use("base"),
            "nothing": lambda: None,
        }
        acts[self.how]()
        return ["1"]


def test_answers_in_an_own_way_are_what_is_evaluated(play: Play) -> None:
    usual, own = play(SFT(), folder="usual"), play(Greedy(), folder="own")
    for one, two in zip(usual.outcome.curve, own.outcome.curve, strict=True):
        assert {**two.values, **one.values} == two.values
        assert two.values["plain_accuracy"] == two.values["accuracy"]
    assert "plain_accuracy" not in usual.outcome.diagnostics
    assert own.counts.tokens == usual.counts.tokens
    says = play(Says(), folder="says")
    assert says.counts.tokens == usual.counts.tokens
    assert says.outcome.diagnostics["answer_tokens"] == 6
    for one, two in zip(usual.outcome.curve, says.outcome.curve, strict=True):
        assert two.values["plain_accuracy"] == one.values["accuracy"]
        assert two.values["majority_accuracy"] == one.values["majority_accuracy"]
        assert two.values["accuracy"] == says.outcome.curve[0].values["accuracy"]


@pytest.mark.parametrize("how", ["finetune", "reinforce", "keep", "use"])
def test_nothing_is_trained_while_it_is_evaluated(play: Play, how: str) -> None:
    with pytest.raises(MethodError, match="while it is evaluated"):
        play(Misbehaves(how=how))


def test_every_prompt_is_answered(play: Play) -> None:
    with pytest.raises(MethodError, match="1 responses to 30 prompts"):
        play(Misbehaves(how="nothing"))


def test_verdicts_are_asked_for_once_an_answer_and_never_too_many(view: Any) -> None:
    view.verdicts, known = 2, {}
    assert judged(view, known, [0, 0, 1, 0, 2], ["2", "x", "5", "2", "17"]) == [True, False, True, True, False]
    assert view.asked == [(0, "2"), (1, "5"), (2, "17")]
    # A third answer to a prompt is not asked for: it counts as wrong, even where it is right.
    assert judged(view, known, [0, 2, 2, 0], ["2", "1", "18", "3"]) == [True, False, False, False]
    assert view.asked[3:] == [(2, "1"), (0, "3")]
    assert known == {0: {"2": True, "3": False}, 1: {"5": True}, 2: {"17": False, "1": False}}


@dataclass
class Scripted:
    """Responses by prompt, the first attempt and the second one."""

    table: dict[str, str]
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    step: Any = None
    drawn: list[list[Rollout]] = field(default_factory=list)

    def generate(self, prompts: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        assert n == 1
        self.calls.append(("generate", list(prompts), temperature))
        return [[self.table[prompt]] for prompt in prompts]

    def finetune(self, examples: Sequence[Example], epochs: int) -> float:
        self.calls.append(("finetune", [tuple(example) for example in examples], epochs))
        return 0.0

    def keep(self, name: str) -> None:
        self.calls.append(("keep", name))

    def reinforce(self, draw: Callable[[], list[Rollout]], steps: int, reference: str, lr_scale: float) -> float:
        self.calls.append(("reinforce", steps, reference, lr_scale))
        self.drawn = [draw() for _ in range(steps)]
        return 0.0


TABLE = {
    "1+1=": "3", "1+1?3=": "2",  # corrected
    "2+3=": "5", "2+3?5=": "4",  # spoiled
    "9+9=": "1…", "9+9?1=": "19",  # wrong twice
}  # fmt: skip


def test_both_stages_pay_what_the_paper_says(view: Any) -> None:
    view.again = lambda prompt, text: f"{prompt[:-1]}?{text.removesuffix('…')}="
    view.verdicts, view.rounds, view.steps, view.feedback = 9, 5, lambda text: [text], lambda right: ""
    policy = Scripted(TABLE)
    method = SCoRe(steps=1, prompts=3, share=0.4, alpha=10.0, beta_1=0.01, beta_2=0.1, sft_epochs=2)
    method.setup(policy, view)
    method.round(policy, view, 1)
    # The single demonstration has no other one for a flaw.
    assert policy.calls[:2] == [("finetune", [("4+4=", "8"), ("4+4?8=", "8")], 2), ("keep", "reference")]
    assert policy.calls[2] == ("reinforce", 1, "reference", method.rl_lr)
    first = {
        Rollout("1+1=", "3", 0.0, 0.1, 0), Rollout("1+1?3=", "2", 1.0, 0.01, 1),
        Rollout("2+3=", "5", 0.0, 0.1, 0), Rollout("2+3?5=", "4", 0.0, 0.01, 1),
        Rollout("9+9=", "1…", 0.0, 0.1, 0), Rollout("9+9?1=", "19", 0.0, 0.01, 1),
    }  # fmt: skip
    assert set(policy.drawn[0]) == first
    method.round(policy, view, 2)
    assert set(policy.drawn[0]) == first
    method.round(policy, view, 3)
    assert set(policy.drawn[0]) == {
        Rollout("1+1=", "3", 0.0, 0.01, 0), Rollout("1+1?3=", "2", 1.0 + 10.0, 0.01, 1),
        Rollout("2+3=", "5", 1.0, 0.01, 0), Rollout("2+3?5=", "4", 0.0 - 10.0, 0.01, 1),
        Rollout("9+9=", "1…", 0.0, 0.01, 0), Rollout("9+9?1=", "19", 0.0, 0.01, 1),
    }  # fmt: skip
    assert method.respond(policy, ["2+3=", "1+1="]) == ["4", "2"]


def test_without_a_bonus_and_a_kl_the_turns_are_paid_alone(view: Any) -> None:
    view.again = lambda prompt, text: f"{prompt[:-1]}?{text.removesuffix('…')}="
    view.verdicts, view.rounds = 9, 5
    policy = Scripted(TABLE)
    method = SCoRe(steps=1, prompts=3, alpha=0.0, beta_1=0.0)
    method.setup(policy, view)
    method.round(policy, view, 5)
    assert sorted(one.reward for one in policy.drawn[0]) == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert not any(one.kl for one in policy.drawn[0])


def same(one: Any, two: Any) -> None:
    assert one.outcome.curve == two.outcome.curve
    assert one.outcome.predictions_sha256 == two.outcome.predictions_sha256
    assert one.outcome.diagnostics == two.outcome.diagnostics
    assert dataclasses.replace(one.counts, seconds=0) == dataclasses.replace(two.counts, seconds=0)


def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, two_turns: Any) -> None:
    def method() -> SCoRe:
        return SCoRe(steps=3, prompts=8, rl_lr=0.5)

    whole = play(method(), folder="whole", task=two_turns)
    play(method(), folder="killed", stop_after=2, task=two_turns)
    same(whole, play(method(), folder="killed", task=two_turns))
    assert whole.outcome.diagnostics["verdicts"] > 0
    assert whole.outcome.diagnostics["answer_tokens"] > 0
    other = play(method(), folder="other", seed=1, task=two_turns)
    assert other.outcome.predictions_sha256 != whole.outcome.predictions_sha256


def test_without_steps_nothing_is_reinforced(play: Play, two_turns: Any) -> None:
    outcome = play(SCoRe(steps=0), task=two_turns).outcome
    _, first, *later = outcome.curve
    assert all(point.values["accuracy"] == first.values["accuracy"] for point in later)
    assert all(point.values["tokens"] == first.values["tokens"] for point in later)
