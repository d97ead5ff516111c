"""ReST-EM: sample, keep what the verifier accepts, fine-tune, repeat (Singh et al., 2024, arXiv:2312.06585)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.registry import register_method
from ..common.responses import judged, refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method("rest-em", family="self-training", protocol="policy", paper="arXiv:2312.06585", needs=("verifier",))
@dataclass
class ReSTEM(PolicyMethod):
    """Expectation-maximisation with a binary reward.

        E: y_j ~ p_theta(. | x), j = 1..N; r = 1 where the verifier accepts y_j
        M: theta <- fine-tuning of the first policy on the accepted y_j, at most `cutoff` different ones a prompt

    The paper samples 32 or 64 times with temperature 0.7 and keeps 10 a problem; N = 4 and 2 fit prompts whose worked
    response is unique. As there, every M-step starts from the first policy, not from the last one. Chosen here: the
    demonstrations are trained on along with what was kept, and the responses to a prompt are those of its round alone.
    Where a prompt has had more different answers than the verifier judges in a run, the later ones count as wrong.
    """

    samples: int = hyper(4, low=1, high=32)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    cutoff: int = hyper(2, low=1, high=10)
    epochs: int = hyper(4, low=1, high=16)

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.known: dict[int, dict[str, bool]] = {}

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        made = policy.generate(view.prompts, self.samples, self.temperature)
        tried = [
            (at, text, answer) for at, responses in enumerate(made) for text in dict.fromkeys(responses)
            if (answer := view.parse(text)) is not None
        ]  # fmt: skip
        right = judged(view, self.known, *([one[part] for one in tried] for part in range(3)))
        accepted: dict[int, list[str]] = {}
        for (at, text, _), good in zip(tried, right, strict=True):
            if good:
                accepted.setdefault(at, []).append(text)
        kept = [Example(view.prompts[at], text) for at, texts in accepted.items() for text in texts[: self.cutoff]]
        refit(policy, view, kept, self.epochs)
