"""Self-consistency: the answer most samples agree on is the label (Huang et al., 2023, arXiv:2210.11610)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import agreeing, refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("self-consistency", family="self-training", protocol="policy", paper="arXiv:2210.11610")
@dataclass
class SelfConsistency(PolicyMethod):
    """Fine-tuning on the samples that lead to the majority's answer.

        y_j ~ p_theta(. | x), j = 1..N;  a* = the most frequent answer;  kept: the y_j that end in a*

    The paper draws 32 paths with temperature 0.7, keeps every path of the majority, and trains once. Chosen here: N =
    8; an answer counts where at least `share` of all samples agree, unparsed ones included in the number; at most
    `cutoff` different responses a prompt; several rounds, each from the first policy with the demonstrations, as
    `rest-em`. MC-CoT, which also has the tokens of rationales voted on while they are learned, is `mc-cot`.
    """

    samples: int = hyper(8, low=2, high=32)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    share: float = hyper(0.5, low=0.0, high=1.0)
    cutoff: int = hyper(2, low=1, high=10)
    epochs: int = hyper(4, low=1, high=16)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        made = policy.generate(view.prompts, self.samples, self.temperature)
        refit(policy, view, agreeing(view, made, self.share, self.cutoff), self.epochs)
