"""MARIO: solutions of text, code and the output of the code, self-trained and valued (Liao et al., 2024,
arXiv:2401.08190)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_method
from ..common.responses import distinct_parsed, judged, refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method(
    "code-interpreter",
    family="self-training",
    protocol="policy",
    paper="arXiv:2401.08190",
    needs=("verifier", "code"),
)
@dataclass
class CodeInterpreter(PolicyMethod):
    """Self-training on solutions that an interpreter takes part in, and an outcome value model of them.

        solution: text and code from the policy up to the end of the code; the code is run behind all code before it,
                  its output (or error) written behind it, and so on, until the policy stops or `snippets` have been run
        round:    y_j ~ such solutions of x, j = 1..N; right where the verifier accepts what the code printed last
                  policy <- fine-tuning of the first policy on demonstrations and right solutions, of the highest V
                  V <- regression on 1 for right solutions and 0 for the others
        answer:   of `candidates` solutions, without the outliers among their answers, that of the highest V

    That code and text alternate, that all earlier code is run again for the state it leaves, that errors are shown as
    outputs, and an end after 8 steps are those of the authors' released inference (which goes on with what it has after
    code that failed; here the program of a solution has then failed as a whole). Their data had at most 5 snippets a
    solution and a temperature of 0.6 beside greedy ones; annotations of a larger model are the task's demonstrations
    here. Of the paper itself its abstract and summaries were at hand: right and wrong sampled solutions train the
    solver and the value estimator in one multi-task fine-tuning, which the harness's value model, with weights of its
    own, does not share; inference takes 20 solutions and is free of outliers. What an outlier is there was not at hand:
    here an answer that only one of the candidates gives, unless all do. Values are of whole solutions; of equal values
    the most frequent answer counts. Chosen here: N = 4, the cutoff and 4 epochs as in `rest-em`, 5 candidates; outputs
    are trained on as the rest of a solution is.

    One candidate is the greedy solution. With 0 samples nothing but the demonstrations is trained on, and with 0
    snippets nothing is run before the end: a round is then one of `sft` from the first policy.
    """

    samples: int = hyper(4, low=0, high=32)
    snippets: int = hyper(8, low=0, high=16, help="how often a solution's code is run before its end")
    temperature: float = hyper(0.6, low=0.2, high=1.5)
    cutoff: int = hyper(2, low=1, high=10)
    epochs: int = hyper(4, low=1, high=16)
    candidates: int = hyper(5, low=1, high=32)
    value_epochs: int = hyper(1, low=1, high=4)
    value_lr: float = hyper(1.0, low=0.1, high=10.0, log=True, help="as a multiple of the policy's learning rate")

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.program, self.observed, self.run_code, self.parse = view.program, view.observed, view.run_code, view.parse
        self.value = policy.value_model()
        self.known: dict[int, dict[str, bool]] = {}

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if not self.samples:
            refit(policy, view, [], self.epochs)
            return
        made = self.solve(policy, view.prompts, self.samples, self.temperature)
        tried = [(at, text) for at, texts in enumerate(made) for text in distinct_parsed(view, texts)]
        right = judged(view, self.known, [at for at, _ in tried], [text for _, text in tried])
        prompts, texts = [view.prompts[at] for at, _ in tried], [text for _, text in tried]
        values = self.value.values(prompts, texts).tolist()
        accepted: dict[int, list[tuple[float, str]]] = {}
        for (at, text), good, value in zip(tried, right, values, strict=True):
            if good:
                accepted.setdefault(at, []).append((value, text))
        kept = [
            Example(view.prompts[at], text)
            for at, own in accepted.items()
            for _, text in sorted(own, key=lambda pair: -pair[0])[: self.cutoff]
        ]
        refit(policy, view, kept, self.epochs)
        self.value.fit(prompts, texts, [float(good) for good in right], self.value_epochs, self.value_lr)

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        if self.candidates == 1:
            return [text for [text] in self.solve(policy, prompts, 1, 0.0)]
        made = self.solve(policy, prompts, self.candidates, self.temperature)
        asked = [prompt for prompt, texts in zip(prompts, made, strict=True) for _ in texts]
        values = iter(self.value.values(asked, [text for texts in made for text in texts]).tolist())
        return [self.choose(texts, [next(values) for _ in texts]) for texts in made]

    def solve(self, policy: Policy, prompts: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        """`n` solutions of every prompt, with the outputs of their code in them; greedy ones at temperature 0."""
        if not self.snippets:
            return policy.generate(prompts, n, temperature)
        made = policy.step(prompts, [CUT_OFF] * len(prompts), n, temperature)
        for _ in range(self.snippets):
            rows = [(at, number) for at, texts in enumerate(made) for number in range(len(texts))]
            seen = self.observe([made[at][number] for at, number in rows])
            going = [(at, number, text) for (at, number), text in zip(rows, seen, strict=True) if text is not None]
            grown = policy.step([prompts[at] for at, _, _ in going], [text for _, _, text in going], 1, temperature)
            for (at, number, text), more in zip(going, grown, strict=True):
                made[at][number] = more[0] if more else text
            if not going:
                break
        return made

    def observe(self, texts: Sequence[str]) -> list[str | None]:
        """Solutions with the output of the code that they have come to the end of; None where there is none."""
        programs = [self.program(text) if text.endswith(CUT_OFF) else None for text in texts]
        ran = iter(self.run_code([program for program in programs if program is not None]))
        ends = [None if program is None else next(ran) for program in programs]
        return [
            None if end is None else self.observed(text, end.error or end.output)
            for text, end in zip(texts, ends, strict=True)
        ]

    def choose(self, texts: Sequence[str], values: Sequence[float]) -> str:
        """The solution of the highest value, outliers and what does not parse left out."""
        answers = [self.parse(text) for text in texts]
        votes = Counter(answer for answer in answers if answer is not None)
        least = min(2, max(votes.values(), default=0))
        ranks = [(votes[answer] >= least, value, votes[answer]) if answer is not None else (False, -1.0, 0)
                 for answer, value in zip(answers, values, strict=True)]  # fmt: skip
        return texts[max(range(len(texts)), key=ranks.__getitem__)]
