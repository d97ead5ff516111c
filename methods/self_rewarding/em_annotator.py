"""ANAH-v2: an annotator and the data that it annotates grow together, by expectation-maximisation (Gu et al., 2024,
arXiv:2407.04693)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_method
from ..common.responses import refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("em-annotator", family="self-training", protocol="policy", paper="arXiv:2407.04693", needs=("steps",))
@dataclass
class EMAnnotator(PolicyMethod):
    """EM of annotations and their annotator, on data that is scaled up from round to round.

        scaling, round t of T:  the first t / T of the pool, in an order drawn once
        E:  phase by phase, `samples` continuations of what was agreed on so far ~ M_t(. | x, ...);
            kept is the one that agrees most with the others: for discrete phases, the most frequent one
        M:  M_{t+1} <- fine-tuning of the first policy on the demonstrations and all annotations of the round

    The paper annotates each sentence of an answer in three phases, each of which sees those before it: whether there is
    a fact to check, which passage of a document it rests on, which kind of hallucination it is. The most consistent of
    several samples is kept in each, by majority where a phase is a choice, by the largest mean similarity where it is
    text; every scaled set (human seeds, more responses to known questions, new topics) is annotated by the annotator of
    the stage before. Its code has the phases, but neither sampling nor training. Phases are here the steps of a
    response, the last of which is a verdict or a rating, and continuations agree where they are equal.

    What sets it apart from `self-consistency`, which votes on the answers of whole responses: a wrong beginning is
    outvoted before anything is built on it, nothing is dropped for want of agreement, and data is added in stages.
    Chosen here: N = 8 samples of temperature 0.7, T stages of equal size for the paper's three; data of earlier stages
    is annotated anew. The first of equally frequent continuations is kept; an annotation that does not parse, or ends
    in no room for its next phase, is left out. With 0 samples nothing is annotated, and a round is one of fine-tuning
    on the demonstrations from the first policy.
    """

    samples: int = hyper(8, low=0, high=32)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    epochs: int = hyper(4, low=1, high=16)

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.order: list[int] = torch.randperm(len(view.prompts), generator=view.generator).tolist()

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        kept: list[Example] = []
        if self.samples:
            size = -(-len(view.prompts) * number // view.rounds)
            prompts = [view.prompts[at] for at in self.order[:size]]
            made = self.annotated(policy, prompts)
            kept = [Example(*pair) for pair in zip(prompts, made, strict=True) if view.parse(pair[1]) is not None]
        refit(policy, view, kept, self.epochs)

    def annotated(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        """One annotation a prompt, agreed on phase by phase; it ends in `CUT_OFF` where it could not be finished."""
        texts = [CUT_OFF] * len(prompts)
        going = list(range(len(prompts)))
        while going:
            made = policy.step(
                [prompts[at] for at in going], [texts[at] for at in going], self.samples, self.temperature
            )
            grown = [at for at, found in zip(going, made, strict=True) if found]
            for at, found in zip(going, made, strict=True):
                if found:
                    texts[at] = Counter(found).most_common(1)[0][0]
            going = [at for at in grown if texts[at].endswith(CUT_OFF)]
        return texts
