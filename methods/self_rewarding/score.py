"""SCoRe: reinforcement learning of a second attempt that corrects the first (Kumar et al., 2024, arXiv:2409.12917)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example, Rollout
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.critique import demonstrated_critiques
from ..common.responses import judged

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView

_REFERENCE = "reference"
"""The name under which the policy is kept that knows what a second attempt is."""
_FIRST, _SECOND = 0, 1
"""The turns: rewards of a turn have the mean of the turn as their baseline."""


@register_method(
    "score", family="self-training", protocol="policy", paper="arXiv:2409.12917", needs=("verifier", "attempts")
)
@dataclass
class SCoRe(PolicyMethod):
    """Two stages of REINFORCE on two attempts, y_1 ~ pi(. | x) and y_2 ~ pi(. | x, y_1, "again"), r in {0, 1}.

        stage I:   max E[r(y_2)] - beta_2 KL(pi(. | x) || pi_ref(. | x)) - beta_1 KL(second turn)
        stage II:  max E[r(y_1) + r(y_2) + alpha (r(y_2) - r(y_1))] - beta_1 KL(both turns)

    Stage I moves the second attempt and pins the first to the first policy; stage II moves both, and pays the second
    one more where it corrects, so that the policy does not collapse into repeating a good first attempt. alpha = 10,
    beta_1 = 0.01, beta_2 = 0.1, temperature 1 are the paper's, which trains for 3,000 steps of 512 prompts. The answer
    that is evaluated is the second attempt.

    Written from summaries of the paper, whose text was not at hand. Chosen here, where they are silent: a turn is paid
    its own reward, the bonus belonging to the second one; paid what comes after it too, the first attempt would earn
    r(y_1) - alpha r(y_1), and be paid for being wrong. The KL is taken off the reward, as the log-ratio of the sample,
    and the baseline is the mean of the turn in the batch. A policy that cannot be told to try again has to learn what a
    second attempt is: the reference pi_ref is the harness's policy, fine-tuned on the demonstrations, alone and after
    right and flawed first attempts (`methods/common/critique.py`; a policy that knows its demonstrations makes no
    mistakes in them by itself). `share` of all rounds are stage I, at least one. With 0 steps a round, nothing is
    trained but that.
    """

    steps: int = hyper(60, low=0, high=1000, help="steps of the optimiser a round")
    prompts: int = hyper(64, low=2, high=512, help="prompts a step")
    share: float = hyper(0.4, low=0.0, high=1.0)
    alpha: float = hyper(10.0, low=0.0, high=20.0)
    beta_1: float = hyper(0.01, low=0.0, high=1.0)
    beta_2: float = hyper(0.1, low=0.0, high=10.0)
    temperature: float = hyper(1.0, low=0.2, high=1.5)
    rl_lr: float = hyper(0.3, low=0.001, high=1.0, log=True, help="as a multiple of the policy's learning rate")
    sft_epochs: int = hyper(16, low=1, high=64)

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.again = view.again
        self.known: dict[int, dict[str, bool]] = {}

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number == 1:
            self.show_second_attempts(policy, view)
        first_stage = number <= max(1, round(self.share * view.rounds))
        policy.reinforce(lambda: self.rollouts(policy, view, first_stage), self.steps, _REFERENCE, lr_scale=self.rl_lr)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        first = [text for [text] in policy.generate(prompts, 1, 0.0)]
        return [text for [text] in policy.generate(self.seen(prompts, first), 1, 0.0)]

    def show_second_attempts(self, policy: Policy, view: PolicyView) -> None:
        """Fine-tune on the demonstrations, alone and after right and flawed first attempts; keep the reference."""
        critiques = demonstrated_critiques(policy, view, self.temperature)
        second = [Example(self.again(one.prompt, one.response), one.refined) for one in critiques]
        policy.finetune([*view.demonstrations, *second], epochs=self.sft_epochs)
        policy.keep(_REFERENCE)

    def seen(self, prompts: Sequence[str], attempts: Sequence[str]) -> list[str]:
        """The prompts of second attempts."""
        return [self.again(prompt, text) for prompt, text in zip(prompts, attempts, strict=True)]

    def rollouts(self, policy: Policy, view: PolicyView, first_stage: bool) -> list[Rollout]:
        """Both attempts at prompts that are drawn, with what they are paid."""
        chosen = torch.randperm(len(view.prompts), generator=view.generator)[: self.prompts].tolist()
        prompts = [view.prompts[at] for at in chosen]
        one = [text for [text] in policy.generate(prompts, 1, self.temperature)]
        again = self.seen(prompts, one)
        two = [text for [text] in policy.generate(again, 1, self.temperature)]
        right = judged(view, self.known, [*chosen, *chosen], [*one, *two])
        found = []
        for at, (r1, r2) in enumerate(zip(right[: len(chosen)], right[len(chosen) :], strict=True)):
            if first_stage:
                paid, kl = (0.0, float(r2)), self.beta_2
            else:
                paid, kl = (float(r1), r2 + self.alpha * (r2 - r1)), self.beta_1
            found.append(Rollout(prompts[at], one[at], paid[0], kl, _FIRST))
            found.append(Rollout(again[at], two[at], paid[1], self.beta_1, _SECOND))
        return found
