"""CREAM: self-rewarding, its preferences weighted by how two iterations agree (Wang et al., 2025, arXiv:2410.12735)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Pair
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import by_group, distinct_parsed, kendall_tau, padded

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView

_PREVIOUS = "previous"
"""The name under which M_{t-1} is kept."""


@register_method("cream", family="self-rewarding", protocol="policy", paper="arXiv:2410.12735", own_judge=True)
@dataclass
class CREAM(PolicyMethod):
    """DPO in both directions, by the consistency C of the rankings of two iterations.

        M_1: fine-tuning of M_0 on the demonstrations
        M_t -> M_{t+1}: y_j ~ M_t(. | x), j = 1..N
        r_j = log M_t(y_j | x) - log M_0(y_j | x), and r'_j by M_{t-1} likewise
        C = mean over prompts of (tau(r, r') + 1) / 2, tau Kendall's
        L = C DPO(y+, y-) + (1 - C) DPO(y-, y+), y+ = argmax r_j, y- = argmin r_j, reference M_t

    Where M_{t-1} is M_0, whose reward would be 0, r' is the mean log-probability of the tokens, as in the authors'
    code. N = 5, temperature 0.8, top-p 0.95 and beta = 0.1 are theirs. `per_prompt` takes the C of each prompt (their
    dynamic variant) in place of the mean. Only different responses that parse are ranked: equal ones have equal
    rewards, and would count as agreement in the order in which they came. `dpo_lr` as in `self-rewarding-likelihood`.
    Where the task has a gate for judges, r is judged there, and a round in which it stays shut changes nothing.

    Every iteration of the paper's algorithm trains, so that M_t and M_{t-1} are two models, whose agreement C measures.
    A round that trains on nothing, its gate shut or without a pair, is therefore no iteration and moves no t: M_{t-1}
    is the policy before the last training, and M_0 until there was one beside the fine-tuning. Were the unmoved policy
    M_{t-1}, it would agree with itself, C = 1, and a judge that fails at the gate would be trusted more afterwards.
    """

    samples: int = hyper(5, low=2, high=16)
    temperature: float = hyper(0.8, low=0.2, high=1.5)
    top_p: float = hyper(0.95, low=0.5, high=1.0)
    beta: float = hyper(0.1, low=0.01, high=1.0, log=True)
    dpo_lr: float = hyper(0.005, low=0.001, high=1.0, log=True)
    sft_epochs: int = hyper(16, low=1, high=64)
    epochs: int = hyper(1, low=1, high=4)
    per_prompt: bool = hyper(False, choices=(True, False))

    _first = 2
    """The round of the first iteration, as far as rounds have been."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number == 1:
            self._first = 2
            policy.finetune(view.demonstrations, epochs=self.sft_epochs)
        elif not (view.gate(policy, partial(prefers, policy)) and self.iterate(policy, view, number)):
            # Nothing was learned: where there was no iteration yet, the next round may be the first one.
            self._first += number == self._first

    def iterate(self, policy: Policy, view: PolicyView, number: int) -> bool:
        """M_t -> M_{t+1}; whether there were pairs to train on."""
        made = policy.generate(view.prompts, self.samples, self.temperature, self.top_p)
        ranked = [(at, texts) for at, group in enumerate(made) if len(texts := distinct_parsed(view, group)) > 1]
        if not ranked:
            return False
        prompts = [view.prompts[at] for at, texts in ranked for _ in texts]
        responses = [text for _, texts in ranked for text in texts]
        first = policy.logprobs(prompts, responses, under="base")
        now = policy.logprobs(prompts, responses) - first
        if number == self._first:
            before = policy.logprobs(prompts, responses, mean=True, under="base")
        else:
            before = policy.logprobs(prompts, responses, under=_PREVIOUS) - first
        sizes = [len(texts) for _, texts in ranked]
        rewards, filled = padded(by_group(now, sizes))
        consistency = (kendall_tau(rewards, padded(by_group(before, sizes))[0], filled) + 1.0) / 2.0
        if not self.per_prompt:
            consistency = consistency.mean().expand(len(ranked))
        best = rewards.masked_fill(~filled, -float("inf")).argmax(dim=1).tolist()
        worst = rewards.masked_fill(~filled, float("inf")).argmin(dim=1).tolist()
        rows = [row for row in range(len(ranked)) if best[row] != worst[row]]
        pairs = [
            Pair(view.prompts[ranked[row][0]], ranked[row][1][best[row]], ranked[row][1][worst[row]]) for row in rows
        ]
        if pairs:
            policy.keep(_PREVIOUS)
        policy.prefer(pairs, consistency[rows], beta=self.beta, epochs=self.epochs, lr_scale=self.dpo_lr)
        return bool(pairs)


def prefers(policy: Policy, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """By how much r of the first response is larger than that of the second."""
    asked, responses = [*prompts, *prompts], [*first, *second]
    rewards = policy.logprobs(asked, responses) - policy.logprobs(asked, responses, under="base")
    return (rewards[: len(prompts)] - rewards[len(prompts) :]).tolist()
