"""Unfiltered self-distillation: the control that keeps whatever the policy answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import distinct_parsed, refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("self-distillation", family="control", protocol="policy", paper="-")
@dataclass
class SelfDistillation(PolicyMethod):
    """Fine-tuning on one sampled response to every prompt, right or wrong, as long as it parses.

    Each round samples from the policy of the round before and starts from the first one, as `rest-em` does: what it
    does not have is the filter.
    """

    temperature: float = hyper(0.7, low=0.2, high=1.5)
    epochs: int = hyper(4, low=1, high=16)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        made = policy.generate(view.prompts, 1, self.temperature)
        kept = [
            Example(prompt, response)
            for prompt, responses in zip(view.prompts, made, strict=True)
            for response in distinct_parsed(view, responses)
        ]
        refit(policy, view, kept, self.epochs)
