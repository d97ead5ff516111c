"""STaR: rationales that end in the right answer, with a hint where none did (Zelikman et al., 2022,
arXiv:2203.14465)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView

_HINTS = "hints"
"""The name under which the policy is kept that knows what a hint is."""


@register_method("star", family="self-training", protocol="policy", paper="arXiv:2203.14465", needs=("answers",))
@dataclass
class STaR(PolicyMethod):
    """One greedy rationale a prompt; those that end in the true answer are trained on.

        generation:      r_i, a_i = M(x_i), kept where a_i = y_i
        rationalisation: r_i, a_i = M(x_i with the hint y_i) where that failed, kept where a_i = y_i, without the hint
        M <- fine-tuning of the first policy on both

    As in the paper, every fine-tuning starts from the first policy. A model that can be prompted sees hints in its few
    shots. Here it is not prompted, for the small models cannot be: the first policy is the harness's, fine-tuned once
    on the demonstrations with and without hints, also where a task grants `shots`. The demonstrations stay among the
    examples, and `epochs` stand for the paper's number of steps that grows by a fifth a round. `rationalise` off is its
    ablation.

    A hint helps where a response is a rationale, which has to be found although the answer is known. Where it is the
    answer alone, as on `addition-smol`, a hinted one is a copy, and what is learned is `oracle-answers`.
    """

    epochs: int = hyper(4, low=1, high=16)
    rationalise: bool = hyper(True, choices=(True, False))

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        shown = list(view.demonstrations)
        if number == 1 and self.rationalise:
            answers = [view.parse(example.response) or "" for example in shown]
            hinted = [Example(view.hinted(one.prompt, y), one.response) for one, y in zip(shown, answers, strict=True)]
            policy.finetune([*shown, *hinted], epochs=self.epochs)
            policy.keep(_HINTS)
        kept = _reaching(view, policy.generate(view.prompts, 1, 0.0), range(len(view.prompts)))
        failed = [at for at in range(len(view.prompts)) if at not in kept]
        if self.rationalise and failed:
            prompts = [view.hinted(view.prompts[at], view.answers[at]) for at in failed]
            kept |= _reaching(view, policy.generate(prompts, 1, 0.0), failed)
        policy.use(_HINTS if self.rationalise else "base")
        policy.finetune([*shown, *(Example(view.prompts[at], text) for at, text in kept.items())], epochs=self.epochs)


def _reaching(view: PolicyView, made: list[list[str]], numbers: range | list[int]) -> dict[int, str]:
    """The responses that end in the true answer, by the numbers of their prompts."""
    return {at: text for at, [text] in zip(numbers, made, strict=True) if view.parse(text) == view.answers[at]}
