"""Critique in the loop: a critic helps the actor to solve what it fails at, and it trains on that (Xi et al., 2024,
arXiv:2411.16579)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.critique import demonstrated_critiques, feedback_examples, refinement_examples
from ..common.responses import judged

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView

_CRITIC = "critic"
"""The name under which the critic is kept: the policy's architecture with weights of its own."""


@register_method(
    "critique-loop",
    family="self-training",
    protocol="policy",
    paper="arXiv:2411.16579",
    needs=("verifier", "attempts"),
)
@dataclass
class CritiqueLoop(PolicyMethod):
    """Self-training whose exploration is led by a critic where it fails.

        before:      the critic is fine-tuned on critiques, the actor on demonstrations and refinements
        exploration: y_j ~ actor(. | x), j = 1..N; what the verifier accepts is kept
                     where nothing is, `attempts` times: c ~ critic(. | x, y), y' ~ actor(. | x, y, c), y <- y'
        learning:    actor <- fine-tuning of the first policy on what was kept, at most `cutoff` a prompt

    Written from the paper's abstract; its text was not at hand. Its point is the second line of exploration: sampling
    alone finds more answers to easy prompts and none to hard ones, so that the data of later rounds narrows; effort
    goes where the actor fails. Its critic is trained on critiques by a larger model; here those are made of the
    demonstrations (`methods/common/critique.py`), as are the refinements. Chosen here: the numbers N = 4, as in
    `rest-em`, and two attempts; the critic is greedy and stays as it is, refinements have the temperature of the
    samples; every learning starts from the first policy, with the demonstrations and their refinements. With 0 attempts
    nothing is criticised, and it is `rest-em` on the data that the actor begins with.
    """

    samples: int = hyper(4, low=1, high=32)
    attempts: int = hyper(2, low=0, high=8)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    cutoff: int = hyper(2, low=1, high=10)
    epochs: int = hyper(4, low=1, high=16)
    critic_epochs: int = hyper(4, low=1, high=64)

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.shown: list[tuple[str, str]] = []
        self.known: dict[int, dict[str, bool]] = {}

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number == 1:
            self.begin(policy, view)
        made = policy.generate(view.prompts, self.samples, self.temperature)
        accepted: list[list[str]] = [[] for _ in view.prompts]
        self.collect(view, [(at, text) for at, texts in enumerate(made) for text in dict.fromkeys(texts)], accepted)
        failed = {at: texts[0] for at, texts in enumerate(made) if not accepted[at]}
        for _ in range(self.attempts):
            failed = self.attempt(policy, view, failed, accepted)
        kept = [Example(view.prompts[at], text) for at, texts in enumerate(accepted) for text in texts[: self.cutoff]]
        policy.use("base")
        policy.finetune([*(Example(*pair) for pair in self.shown), *kept], epochs=self.epochs)

    def begin(self, policy: Policy, view: PolicyView) -> None:
        """Train critic and actor on what the demonstrations teach."""
        critiques = demonstrated_critiques(policy, view, self.temperature)
        policy.finetune(feedback_examples(view, critiques), epochs=self.critic_epochs)
        policy.keep(_CRITIC)
        self.shown = [*view.demonstrations, *refinement_examples(view, critiques)]
        policy.use("base")
        policy.finetune([Example(*pair) for pair in self.shown], epochs=self.epochs)

    def attempt(
        self, policy: Policy, view: PolicyView, failed: dict[int, str], accepted: list[list[str]]
    ) -> dict[int, str]:
        """Another attempt at the prompts that `failed`, with the responses given; those that still do, likewise."""
        asked = [view.critic(view.prompts[at], text) for at, text in failed.items()]
        said = [text for [text] in policy.generate(asked, 1, 0.0, under=_CRITIC)]
        # Feedback that cannot be read, and praise of what is known to be wrong, lead nowhere.
        led = {at: text for at, text in zip(failed, said, strict=True) if view.approves(text) is False}
        again = [view.again(view.prompts[at], failed[at], text) for at, text in led.items()]
        made = [text for [text] in policy.generate(again, 1, self.temperature)]
        self.collect(view, list(zip(led, made, strict=True)), accepted)
        found = failed | dict(zip(led, made, strict=True))
        return {at: text for at, text in found.items() if not accepted[at]}

    def collect(self, view: PolicyView, tried: list[tuple[int, str]], accepted: list[list[str]]) -> None:
        """Put what the verifier accepts to the others."""
        right = judged(view, self.known, [at for at, _ in tried], [text for _, text in tried])
        for (at, text), good in zip(tried, right, strict=True):
            if good:
                accepted[at].append(text)
