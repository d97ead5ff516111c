"""MC-CoT: self-training on the majority's answers, whose rationales are learned by a vote of passes (Tan et al., 2024,
arXiv:2311.14109)."""

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


@register_method("mc-cot", family="self-training", protocol="policy", paper="arXiv:2311.14109")
@dataclass
class MCCoT(PolicyMethod):
    """Self-consistency within the training: answers by majority, every token of the rationales by a vote.

        y_j ~ p_theta(. | x), j = 1..N;  a* = the most frequent answer;  kept: the y_j that end in a*
        L = -mean_t log softmax((1 / V) sum_v z_v(y_t | x, y_<t)), z_v the logits of pass v under dropout

    The vote over tokens is the paper's: V = 5 passes with dropout, whose logits are averaged before the cross-entropy;
    inference is as ever. Written from its abstract and its code. There the logits are averaged a second time, weighted
    by 1 / (1 + their deviation); the weight is the same for all passes, so that this is the mean again, but for a sum
    over the batch in the denominator, which is not followed here. The paper is multimodal, has a T5 with the dropout of
    its own (0.1), writes rationale and answer in two stages, and learns from given ones. Here a response is both at a
    stretch; dropout of 0.1 acts, as in T5, on what attention and feed-forward layers add; and what is learned, beside
    the demonstrations, are the majority's samples of `self-consistency`, by its defaults. With one pass and no dropout
    it is that method.
    """

    samples: int = hyper(8, low=2, high=32)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    share: float = hyper(0.5, low=0.0, high=1.0)
    cutoff: int = hyper(2, low=1, high=10)
    passes: int = hyper(5, low=1, high=16)
    dropout: float = hyper(0.1, low=0.0, high=0.5)
    epochs: int = hyper(4, low=1, high=16)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        made = policy.generate(view.prompts, self.samples, self.temperature)
        kept = agreeing(view, made, self.share, self.cutoff)
        if self.passes == 1 and not self.dropout:
            refit(policy, view, kept, self.epochs)
            return
        policy.use("base")
        policy.finetune_voted([*view.demonstrations, *kept], self.passes, self.dropout, self.epochs)
