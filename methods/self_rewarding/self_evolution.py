"""SELF: learn to give feedback and to refine, then train on one's own refined answers (Lu et al., 2024,
arXiv:2310.00533)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_method
from ..common.critique import demonstrated_critiques, feedback_examples, refinement_examples

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method(
    "self", family="self-training", protocol="policy", paper="arXiv:2310.00533", needs=("attempts",), own_judge=True
)
@dataclass
class SELF(PolicyMethod):
    """Self-evolution by language feedback: nobody but the policy itself judges its answers.

        meta-skills: fine-tuning on log p(f | x, r) + log p(y | x, r, f) + beta log p(y | x)
        evolution, once a round:
          r ~ M(. | x),  f = M(. | x, r),  r' = M(. | x, r, f) where f finds something wrong, else r
          f' = M(. | x, r'),  r' is kept where f' finds nothing wrong
          M <- fine-tuning of the first policy on meta-skills and kept answers
        answer: r greedily, refined once by the same two calls

    Written from summaries of the paper, whose text was not at hand. Its corpus of meta-skills has feedback and
    refinements by a larger model. Here it is made of the demonstrations (`methods/common/critique.py`): r is the worked
    response, or one with a wrong step that the policy completes, f says which of its steps are the worked ones, y is
    the worked response. Feedback and refinement are greedy, first answers have temperature 0.7. As one of the paper's
    variants, every round trains anew from the first policy on all that is there; the answers are those of the round
    alone. `refine` off answers without refinement, as the paper reports too. With 0 samples no answer is trained on,
    and every round is the meta-skills' one; so is
    a round in which the task's gate for judges, where it has one, stays shut to the policy's feedback.
    """

    samples: int = hyper(1, low=0, high=8)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    beta: float = hyper(1.0, low=0.0, high=10.0)
    epochs: int = hyper(4, low=1, high=16)
    refine: bool = hyper(True, choices=(True, False))

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.critic, self.again, self.approves, self.parse = view.critic, view.again, view.approves, view.parse
        self.meta: list[tuple[str, str]] = []

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        kept: list[Example] = []
        if number == 1:
            critiques = demonstrated_critiques(policy, view, self.temperature)
            self.meta = [*feedback_examples(view, critiques), *refinement_examples(view, critiques)]
        elif self.samples and view.gate(policy, partial(self.prefers, policy)):
            kept = self.answers(policy, view)
        skills = [Example(*pair) for pair in self.meta]
        weights = [1.0] * len(skills) + [self.beta] * (len(view.demonstrations) + len(kept))
        policy.use("base")
        policy.finetune([*skills, *view.demonstrations, *kept], weights, epochs=self.epochs)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        made = [text for [text] in policy.generate(prompts, 1, 0.0)]
        return self.refined(policy, prompts, made)[0] if self.refine else made

    def answers(self, policy: Policy, view: PolicyView) -> list[Example]:
        """The refined answers to the pool that the policy finds nothing wrong with, different ones alone."""
        made = policy.generate(view.prompts, self.samples, self.temperature)
        asked = [prompt for prompt, texts in zip(view.prompts, made, strict=True) for _ in texts]
        texts, praised = self.refined(policy, asked, [text for texts in made for text in texts])
        # What was praised as it came would be praised again: feedback is greedy.
        new = [at for at, good in enumerate(praised) if not good]
        said = self.said(policy, [asked[at] for at in new], [texts[at] for at in new])
        good = set(range(len(texts))).difference(
            at for at, text in zip(new, said, strict=True) if not self.praises(text)
        )
        kept = [(asked[at], texts[at]) for at in sorted(good) if self.parse(texts[at]) is not None]
        return [Example(*pair) for pair in dict.fromkeys(kept)]

    def refined(self, policy: Policy, prompts: Sequence[str], made: Sequence[str]) -> tuple[list[str], list[bool]]:
        """The responses `made`, refined where the policy's feedback finds something wrong, and which it praises."""
        feedback = self.said(policy, prompts, made)
        wrong = [at for at, text in enumerate(feedback) if self.approves(text) is False]
        asked = [self.again(prompts[at], made[at], feedback[at]) for at in wrong]
        found = list(made)
        for at, [text] in zip(wrong, policy.generate(asked, 1, 0.0), strict=True):
            # A refinement that was cut off is none.
            found[at] = made[at] if text.endswith(CUT_OFF) else text
        return found, [self.praises(text) for text in feedback]

    def said(self, policy: Policy, prompts: Sequence[str], made: Sequence[str]) -> list[str]:
        """The policy's feedback on responses."""
        asked = [self.critic(prompt, text) for prompt, text in zip(prompts, made, strict=True)]
        return [text for [text] in policy.generate(asked, 1, 0.0)]

    def prefers(self, policy: Policy, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[int]:
        """1 where the policy's feedback praises the first response alone, -1 where it praises the second alone."""
        said = self.said(policy, [*prompts, *prompts], [*first, *second])
        good = [self.praises(text) for text in said]
        return [one - two for one, two in zip(good[: len(prompts)], good[len(prompts) :], strict=True)]

    def praises(self, feedback: str) -> bool:
        return self.approves(feedback) is True
