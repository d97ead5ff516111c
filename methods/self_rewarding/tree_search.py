"""Confidence-guided tree search as decoding: beams of steps that the model itself evaluates (Xie et al., 2023,
arXiv:2305.00633)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...suite.hyper import hyper
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_method
from ..common.mcts import demonstrated

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView

_LEAST = 1e-6
"""Confidences are at least so large: of a product nothing may be 0."""


class Beam(NamedTuple):
    """A response that grows: its text, log prod P and log prod C of its steps, and whether it goes on."""

    text: str = CUT_OFF
    likely: float = 0.0
    sure: float = 0.0
    going: bool = True


@register_method("tree-search", family="decoding", protocol="policy", paper="arXiv:2305.00633", needs=("steps",))
@dataclass
class TreeSearch(PolicyMethod):
    """Stochastic beam search over steps s^t, guided by the model's own confidence that each one is right.

        E(s^{1:t}) = prod_t P(s^t | x, s^{1:t-1})^weight C(s^t)^(1 - weight)
        expansion:   `samples` next steps of each of the `beams`, with temperature gamma
        selection:   `beams` of all candidates, drawn without replacement, p ~ exp(E / tau), tau <- decay tau
        answer:      the whole response with the largest E

    The policy is left as it is: what changes is how it answers. C is the paper's self-evaluation, there the probability
    that the model, prompted with worked evaluations, calls a step correct. A policy that cannot be prompted so is its
    own evaluator by a head: a copy of it, trained in the first round to tell the steps of the demonstrations (1) from
    those of others in their place (0). weight 0.5, tau 0.5, decay 0.5 and gamma up to 1 are those of the authors'
    scripts, whose 5 beams have 16 samples each; 4 of 3 are chosen here. Their code draws with p ~ E^(1 / tau), of an E
    that is normalised by the number of tokens and steps, and rejects candidates below a least score; p and E here are
    the paper's. A response that does not parse is answered with only where none does.
    With one beam, one sample, temperature 0 and the weight 1 it is greedy decoding, and no evaluator is trained.
    """

    beams: int = hyper(4, low=1, high=16)
    samples: int = hyper(3, low=1, high=16)
    temperature: float = hyper(0.7, low=0.0, high=1.5)
    weight: float = hyper(0.5, low=0.0, high=1.0)
    tau: float = hyper(0.5, low=0.0, high=10.0)
    decay: float = hyper(0.5, low=0.0, high=1.0)
    epochs: int = hyper(6, low=1, high=64)
    value_lr: float = hyper(1.0, low=0.1, high=10.0, log=True, help="as a multiple of the policy's learning rate")

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.confidence = policy.value_model()
        self.parse = view.parse
        self.draw = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=view.generator)))

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if number > 1 or self.weight == 1.0:
            return
        trees = demonstrated([view.steps(example.response) for example in view.demonstrations], view.generator)
        data = [
            (example.prompt, node.text, 0.0 if node.verdict is False else 1.0)
            for example, tree in zip(view.demonstrations, trees, strict=True)
            for node in tree.walk() if node.parent is not None
        ]  # fmt: skip
        prompts, texts, right = zip(*data, strict=True)
        self.confidence.fit(prompts, texts, right, self.epochs, self.value_lr)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        found = [[Beam()] for _ in prompts]
        tau = self.tau
        while any(beam.going for beams in found for beam in beams):
            found = [self.select(beams, tau) for beams in self.expand(policy, prompts, found)]
            tau *= self.decay
        return [self.best(beams) for beams in found]

    def expand(self, policy: Policy, prompts: Sequence[str], found: list[list[Beam]]) -> list[list[Beam]]:
        """The candidates of every prompt: its beams that have ended, and the different next steps of the others."""
        rows = [(at, beam) for at, beams in enumerate(found) for beam in beams if beam.going]
        asked = [prompts[at] for at, _ in rows]
        made = policy.step(asked, [beam.text for _, beam in rows], self.samples, self.temperature)
        grown = [
            (at, beam, text) for (at, beam), texts in zip(rows, made, strict=True) for text in dict.fromkeys(texts)
        ]
        asked, texts = [prompts[at] for at, _, _ in grown], [text for _, _, text in grown]
        likely = policy.logprobs(asked, texts, unfinished=True).tolist()
        sure = torch.zeros(len(grown), dtype=torch.float64)
        if self.weight < 1.0:
            sure = self.confidence.values(asked, texts).clamp_min(_LEAST).log()
        candidates = [[beam for beam in beams if not beam.going] for beams in found]
        # What can go no further has ended as it is.
        for (at, beam), texts_of in zip(rows, made, strict=True):
            if not texts_of:
                candidates[at].append(beam._replace(going=False))
        for (at, beam, text), logp, logc in zip(grown, likely, sure.tolist(), strict=True):
            candidates[at].append(Beam(text, logp, beam.sure + logc, text.endswith(CUT_OFF)))
        return candidates

    def score(self, beams: Sequence[Beam]) -> torch.Tensor:
        """log E (N,)"""
        likely, sure = (torch.tensor([beam[at] for beam in beams], dtype=torch.float64) for at in (1, 2))
        return self.weight * likely + (1.0 - self.weight) * sure

    def select(self, candidates: list[Beam], tau: float) -> list[Beam]:
        """`beams` of them, drawn without replacement from p ~ exp(E / tau); the best ones where tau is 0."""
        value = self.score(candidates)
        if tau > 0:
            noise = torch.empty_like(value).exponential_(generator=self.draw)
            # The largest log p - log noise are such a draw.
            value = value.exp() / tau - noise.log()
        return [candidates[at] for at in value.argsort(descending=True, stable=True)[: self.beams].tolist()]

    def best(self, beams: list[Beam]) -> str:
        score = self.score(beams).tolist()
        parsed = [self.parse(beam.text) is not None for beam in beams]
        return beams[max(range(len(beams)), key=lambda at: (parsed[at], score[at]))].text
