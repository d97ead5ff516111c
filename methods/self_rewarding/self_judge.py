"""Self-J: a judge that sees references teaches itself to judge without them (Ye & Ng, 2024, arXiv:2409.00935)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Referenced
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method(
    "self-judge", family="self-training", protocol="policy", paper="arXiv:2409.00935", needs=("references",)
)
@dataclass
class SelfJudge(PolicyMethod):
    """Judge training without labels of quality: references are known, and what they say of responses is distilled.

        self-evaluation: j_k ~ M(. | x, reference), k = 1..N;  e_i = mean over k of the rating of response i by j_k
        recalibration:   q_i = (1 - mix) e_i + mix s_i,  s_i the likeness of response i and the reference
        target:          the j_k whose ratings are nearest to q
        training:        CE(target | x, reference) + alpha CE(target | x) + kd KL(p(. | x, reference) || p(. | x))

    The last term is the self-distillation: M with the reference is the teacher, whose gradient is stopped in it, M
    without is the student, and both are one model. alpha = 0.3, kd = 2 and two epochs are those of the authors' code,
    as is the KL over all tokens of the judgement but the stop symbol. There a judgement is one digit, e its expectation
    under M, s the cosine of sentence vectors, and the class of both together is the target; how they are mixed is in no
    file that was released, and the paper's text was not at hand, so that a mean (`mix` 0.5) is chosen. Where a
    judgement is reasoned out before its rating, the expectation is taken over samples, and what is trained on must be a
    whole judgement: the sampled one that comes nearest to q, the first of equal ones. A prompt none of whose samples
    parses is left out.

    Chosen here: rounds, each of which judges the pool anew with the judge as it stands and trains the first one;
    demonstrations are trained on along, with no reference on either side; four epochs, as the other methods have. With
    0 samples no judgement is made, and a round is one of fine-tuning on the demonstrations from the first policy.
    """

    samples: int = hyper(4, low=0, high=32)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    mix: float = hyper(0.5, low=0.0, high=1.0)
    alpha: float = hyper(0.3, low=0.0, high=10.0)
    kd: float = hyper(2.0, low=0.0, high=10.0)
    epochs: int = hyper(4, low=1, high=16)

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if not self.samples:
            refit(policy, view, [], self.epochs)
            return
        asked = [view.referenced(*pair) for pair in zip(view.prompts, view.references, strict=True)]
        made = policy.generate(asked, self.samples, self.temperature)
        taught = [Referenced(one.prompt, one.prompt, one.response) for one in view.demonstrations]
        for prompt, shown, reference, texts in zip(view.prompts, asked, view.references, made, strict=True):
            parsed = [text for text in texts if view.parse(text) is not None]
            if parsed:
                rated = [view.ratings(text) for text in parsed]
                target = nearest(rated, self.recalibrated(rated, view.similarities(prompt, reference)))
                taught.append(Referenced(prompt, shown, parsed[target]))
        policy.use("base")
        policy.distill(taught, self.alpha, self.kd, self.epochs)

    def recalibrated(self, rated: Sequence[Sequence[float]], likeness: Sequence[float]) -> list[float]:
        """q of each response from the ratings (K, responses) of K judgements and the likenesses (responses,)."""
        means = [sum(ratings) / len(rated) for ratings in zip(*rated, strict=True)]
        return [(1.0 - self.mix) * e + self.mix * s for e, s in zip(means, likeness, strict=True)]


def nearest(rated: Sequence[Sequence[float]], wanted: Sequence[float]) -> int:
    """Which of the ratings (K, responses) has the least summed distance to those `wanted`; the first of equal ones."""
    distance = [sum(abs(one - other) for one, other in zip(ratings, wanted, strict=True)) for ratings in rated]
    return distance.index(min(distance))
