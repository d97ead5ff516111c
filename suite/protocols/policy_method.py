"""What a method of the protocol `policy` is: the base class that a method author writes `round` for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..hyper import hyper

if TYPE_CHECKING:
    from .policy_model import Policy
    from .policy_view import PolicyView


@dataclass
class PolicyMethod:
    """A method for a policy that trains itself: a dataclass whose fields are its hyper-parameters.

    `round` is called once a round, with the number of the round from 1. State between rounds lives in plain attributes;
    weights of earlier rounds are kept by the policy (`keep`, `use`).
    """

    lr_scale: float = hyper(1.0, low=0.1, high=10.0, log=True, help="learning rate as a multiple of the task's recipe")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def setup(self, policy: Policy, view: PolicyView) -> None:
        """Called once before the first round, and again when a killed run is resumed."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        """Improve `policy` from what `view` shows; the harness evaluates it afterwards, off the clock."""
        raise NotImplementedError

    def asked(self, prompts: Sequence[str]) -> list[str]:
        """What the policy is asked in place of the prompts of an evaluation, one each: a method may show more there.

        A pure function. It holds for greedy answers, votes and questions that are answered by likelihood, from round 1
        on: round 0 is the first policy, asked as the task does.
        """
        return list(prompts)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        """The responses that are evaluated, one a prompt: greedy ones, unless a method answers in a way of its own.

        Called by the evaluation with its prompts, off the meter and the clock; `policy` cannot be trained meanwhile.
        It holds from round 0 on, where the first policy answers so. The record holds the accuracy of greedy answers
        (`plain_accuracy`) and the tokens that an own way takes.
        """
        return [response for [response] in policy.generate(prompts, 1, 0.0)]
