"""Few-shot prompting: the first policy, asked with worked problems before each question, and never trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...suite.errors import MethodError
from ...suite.hyper import hyper
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("few-shot", family="control", protocol="policy", paper="arXiv:2005.14165", needs=("shots",))
@dataclass
class FewShot(PolicyMethod):
    """What demonstrations are worth without any training: k of them stand before each question (Brown et al., 2020).

        x' = x_1 y_1 ... x_k y_k x,  (x_i, y_i) drawn from the demonstrations, without replacement

    They are drawn once a run, by its seed, and are the same for all questions, as is their order; the paper draws them
    anew for each question, which costs their computation anew. How they are put is the task's: turns of a chat, or one
    after the other. Greedy answers, votes, and likelihoods of options are all asked so. Round 0 is the first policy on
    the questions alone, as for all methods, and so is every round of k = 0. A k that does not fit into the positions of
    the model ends the run with an error that says so; the default is what fits where the control is granted.
    """

    k: int = hyper(3, low=0, high=32)

    def setup(self, policy: Policy, view: PolicyView) -> None:
        shown = view.demonstrations
        if self.k > len(shown):
            raise MethodError(f"method 'few-shot' shows k = {self.k} worked problems, and there are {len(shown)}")
        self.drawn: list[int] = torch.randperm(len(shown), generator=view.generator)[: self.k].tolist()
        self.preceded = partial(view.preceded, shots=[shown[at] for at in self.drawn])

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        """Nothing is learned."""

    def asked(self, prompts: Sequence[str]) -> list[str]:
        return [self.preceded(prompt) for prompt in prompts] if self.k else list(prompts)
