"""The oracle: worked responses to the whole pool, an upper bound to every choice among own responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("oracle-answers", family="upper-bound", protocol="policy", paper="-", needs=("solutions",))
@dataclass
class OracleAnswers(PolicyMethod):
    """Self-training with true worked responses in place of the policy's own, round by round from the first policy."""

    epochs: int = hyper(4, low=1, high=16)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        refit(policy, view, [Example(*pair) for pair in zip(view.prompts, view.solutions, strict=True)], self.epochs)
