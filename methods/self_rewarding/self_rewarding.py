"""Self-rewarding with an LLM-as-a-judge: the policy gives its own samples points, DPO on best and worst (Yuan et al.,
2024, arXiv:2401.10020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.critique import marked_demonstrations
from ..common.responses import best_and_worst, distinct_parsed

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method(
    "self-rewarding",
    family="self-rewarding",
    protocol="policy",
    paper="arXiv:2401.10020",
    version="2",
    needs=("judge",),
    own_judge=True,
)
@dataclass
class SelfRewarding(PolicyMethod):
    """Iterative DPO on the points that the policy gives its own responses when it is asked to.

        M_1: fine-tuning on the demonstrations, and on worked judgements
        M_t -> M_{t+1}: y_j ~ M_t(. | x), j = 1..N;  J_jk ~ M_t(. | judge(x, y_j)), k = 1..K
        r_j = mean of points(J_jk) over the k that parse
        DPO from M_t with the reference M_t on (argmax_j r_j, argmin_j r_j)

    N = 4 samples, K = 3 judgements whose points are averaged, temperature 0.7, top-p 0.9 and beta = 0.1 are the
    paper's, as is the judge: a prompt with five criteria, a point each, that add up to a score (the words here are the
    task's own). A judgement that does not parse is dropped, and the record counts it (`judgement_parse_rate`); a
    response none of whose judgements parses is neither chosen nor rejected, and equal rewards give no pair.

    The full text of the paper was not at hand. Its seed data has judgements made of people's rankings. Here they are
    made of the demonstrations (`methods/common/critique.py`): the worked response is right, one with a step of another
    demonstration is not. As there, one fine-tuning is on both, in which each demonstration comes `sft_epochs` times and
    each judgement `judge_epochs` times; with 0 of these the judge is the policy as it comes, and round 1 that of
    `self-rewarding-likelihood`. The paper's new prompts are written by a model; here they are those of the pool. As in
    `self-rewarding-likelihood`, different responses that parse are judged, and `dpo_lr` is a multiple of the learning
    rate. With 0 judgements the rounds after the first leave the policy as it is; where the task has a gate for judges,
    so does a round in which it stays shut.
    """

    samples: int = hyper(4, low=2, high=16)
    judgements: int = hyper(3, low=0, high=16)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    top_p: float = hyper(0.9, low=0.5, high=1.0)
    judge_temperature: float = hyper(0.7, low=0.0, high=1.5)
    beta: float = hyper(0.1, low=0.01, high=1.0, log=True)
    dpo_lr: float = hyper(0.005, low=0.001, high=1.0, log=True)
    sft_epochs: int = hyper(16, low=1, high=64)
    judge_epochs: int = hyper(4, low=0, high=64)
    epochs: int = hyper(1, low=1, high=4)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number == 1:
            self.begin(policy, view)
            return
        if not self.judgements or not view.gate(policy, partial(self.prefers, policy, view)):
            return
        made = policy.generate(view.prompts, self.samples, self.temperature, self.top_p)
        groups = [distinct_parsed(view, group) for group in made]
        asked = [prompt for prompt, texts in zip(view.prompts, groups, strict=True) for _ in texts]
        rewards = self.rewards(policy, view, asked, [text for texts in groups for text in texts])
        pairs = best_and_worst(view.prompts, groups, rewards)
        policy.prefer(pairs, beta=self.beta, epochs=self.epochs, lr_scale=self.dpo_lr)

    def begin(self, policy: Policy, view: PolicyView) -> None:
        """One training on demonstrations and worked judgements, each as often as it has epochs."""
        if not self.judge_epochs:
            policy.finetune(view.demonstrations, epochs=self.sft_epochs)
            return
        worked = worked_judgements(policy, view, self.temperature)
        policy.finetune([*list(view.demonstrations) * self.sft_epochs, *worked * self.judge_epochs])

    def rewards(
        self, policy: Policy, view: PolicyView, prompts: Sequence[str], responses: Sequence[str]
    ) -> list[float | None]:
        """The mean points of each response, None where no judgement of it parses."""
        asked = [view.judge(*pair) for pair in zip(prompts, responses, strict=True)]
        said = policy.generate(
            asked, self.judgements, self.judge_temperature, self.top_p, max_new=view.judgement_tokens
        )
        given = [[points for points in view.points(texts) if points is not None] for texts in said]
        return [sum(points) / len(points) if points else None for points in given]

    def prefers(
        self, policy: Policy, view: PolicyView, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[float]:
        """By how many points the first response is better than the second; 0 where one of them has none."""
        rewards = self.rewards(policy, view, [*prompts, *prompts], [*first, *second])
        pairs = zip(rewards[: len(prompts)], rewards[len(prompts) :], strict=True)
        return [0.0 if one is None or two is None else one - two for one, two in pairs]


def worked_judgements(policy: Policy, view: PolicyView, temperature: float) -> list[Example]:
    """What a judge learns: judgements of demonstrations, and of ones with a wrong step that the policy completes."""
    return [
        Example(view.judge(one.prompt, one.response), view.judgement(one.right))
        for one in marked_demonstrations(policy, view, temperature)
    ]
