"""Self-rewarding by likelihood: `self-rewarding` (Yuan et al., 2024, arXiv:2401.10020) without its judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import best_and_worst, distinct_parsed

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("self-rewarding-likelihood", family="self-rewarding", protocol="policy", paper="-", own_judge=True)
@dataclass
class SelfRewardingLikelihood(PolicyMethod):
    """Iterative DPO on what the policy finds likely.

        M_1: fine-tuning on the demonstrations
        M_t -> M_{t+1}: y_j ~ M_t(. | x), j = 1..N, reward r_j by M_t itself; DPO from M_t with the reference M_t on
        (argmax_j r_j, argmin_j r_j)

    It is no published method: it has the rounds of `self-rewarding`, and for a reward the mean log-probability of a
    response's tokens, (1 / |y|) log M_t(y | x), to which CREAM's code falls back without a reference model. No model is
    asked for a judgement, and no task has to have a prompt for one.
    N = 4, temperature 0.7, top-p 0.9 and beta = 0.1 are those of `self-rewarding`.
    Only different responses that parse are judged; a prompt with fewer than two of them gives no pair. `dpo_lr` is a
    multiple of the learning rate. CREAM's code has 1e-6 for DPO and 5e-6 for fine-tuning; at the 2e-3 of
    `arithmetic-tiny` one fifth, and still 0.02 of it, ruined a policy in two rounds, so that 0.005 was chosen (seed
    100). Where the task has a gate for judges, a round in which it stays shut leaves the policy as it is.
    """

    samples: int = hyper(4, low=2, high=16)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    top_p: float = hyper(0.9, low=0.5, high=1.0)
    beta: float = hyper(0.1, low=0.01, high=1.0, log=True)
    dpo_lr: float = hyper(0.005, low=0.001, high=1.0, log=True)
    sft_epochs: int = hyper(16, low=1, high=64)
    epochs: int = hyper(1, low=1, high=4)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number == 1:
            policy.finetune(view.demonstrations, epochs=self.sft_epochs)
            return
        if not view.gate(policy, partial(prefers, policy)):
            return
        made = policy.generate(view.prompts, self.samples, self.temperature, self.top_p)
        judged = [(at, texts) for at, group in enumerate(made) if len(texts := distinct_parsed(view, group)) > 1]
        prompts = [view.prompts[at] for at, texts in judged for _ in texts]
        rewards = policy.logprobs(prompts, [text for _, texts in judged for text in texts], mean=True)
        pairs = best_and_worst([view.prompts[at] for at, _ in judged], [texts for _, texts in judged], rewards.tolist())
        policy.prefer(pairs, beta=self.beta, epochs=self.epochs, lr_scale=self.dpo_lr)


def prefers(policy: Policy, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """By how much the policy rewards the first response more than the second."""
    rewards = policy.logprobs([*prompts, *prompts], [*first, *second], mean=True)
    return (rewards[: len(prompts)] - rewards[len(prompts) :]).tolist()
