"""Supervised fine-tuning on the demonstrations: what self-training must beat, and the same with as many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...suite.hyper import hyper
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("sft", family="baseline", protocol="policy", paper="-")
@dataclass
class SFT(PolicyMethod):
    """Fine-tuning on the demonstrations alone, on and on: `epochs` passes over them a round."""

    epochs: int = hyper(16, low=1, high=64)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        policy.finetune(view.demonstrations, epochs=self.epochs)


@register_method("sft-matched", family="control", protocol="policy", paper="-")
@dataclass
class SFTMatched(PolicyMethod):
    """Fine-tuning on demonstrations alone, with the steps of self-training that keeps one response to every prompt.

    What trains on more of them, or on a critic, a value or both orders of a judgement too, is matched by more `epochs`.
    Every round starts from the first policy, as there, and takes `epochs` passes over as many examples as there are
    demonstrations and prompts of the pool together: whole copies of the demonstrations, the rest of them drawn.
    """

    epochs: int = hyper(4, low=1, high=16)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        shown = view.demonstrations
        whole, rest = divmod(len(shown) + len(view.prompts), len(shown))
        drawn = torch.randperm(len(shown), generator=view.generator)[:rest].tolist()
        policy.use("base")
        policy.finetune([*shown * whole, *(shown[at] for at in drawn)], epochs=self.epochs)
