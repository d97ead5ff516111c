"""The protocol `policy`: a language model that improves itself in rounds, and is evaluated after each.

`PolicyTask` is what a task author writes, `PolicyMethod` (`policy_method.py`) what a method author writes: one
function, `round`. The model stands behind the narrow interface of `Policy` (`policy_model.py`): generate, logprobs,
finetune, prefer, each batched and metered in tokens. True answers stay with the scorer, in another process; a verifier,
where a task grants one, answers from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import nn

from ..bundle import Array, Bundle, BundleFolder
from .optimisation import Recipe
from .policy_grants import Grants
from .policy_measures import Measures

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Data
    from .tokens import Tokenizer


@dataclass(frozen=True)
class Problems:
    """Which problems are which in one run: index arrays into the task's problems.

    `demonstrations` (D,) are shown with their worked `responses`, `pool` (U,) as prompts alone; `test` (T,) are those
    of the evaluation. `probe` (P,) are labelled problems of the judge's gate, which are none of the others, and
    `probe_samples` the responses to each, sampled at `vote_temperature` whenever a method asks the gate. Raises
    `ValueError` where a test problem is also shown.
    """

    demonstrations: Array
    responses: Sequence[str]
    pool: Array
    test: Array
    probe: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    probe_samples: int = 4

    def __post_init__(self) -> None:
        if len(self.demonstrations) != len(self.responses):
            raise ValueError("every demonstration needs its response")
        if np.intersect1d(np.concatenate([self.demonstrations, self.pool]), self.test).size:
            raise ValueError("test problems may not be among those a method is shown")
        if np.intersect1d(np.concatenate([self.demonstrations, self.pool, self.test]), self.probe).size:
            raise ValueError("problems of the judge's gate may not be among the others")


class PolicyTask:
    """A policy task: problems, language model, template, stop rule, answer extraction, training recipe.

    The template is part of `prompts`, the stop rule is the tokenizer's stop symbol and `max_new`, the extraction is
    `answer`: all of them are part of the task's version. What not every task has is an object of its own: `grants`
    gives what methods may ask for, `measures` what is measured beside the usual.
    """

    tell: Callable[[str], None] = staticmethod(lambda text: None)
    """Where a long `build` says how far it is; the harness listens."""
    recipe: ClassVar[Recipe] = Recipe(optimizer="adamw")
    """Optimiser, learning rate, batch size and schedule of every training; `ema` and `points` play no part here."""
    first_epochs: ClassVar[int] = 0
    """Passes over the run's demonstrations that make the first policy out of the bundle's model: the same training for
    all methods, before round 0 and off the meter."""
    rounds: ClassVar[int]
    """How many rounds a run has, unless its budget ends before."""
    max_new: ClassVar[int]
    """Tokens after which a response is cut off, the stop symbol included."""
    votes: ClassVar[int] = 8
    """Samples a test prompt for the majority vote and pass@k; without any, neither is measured."""
    vote_temperature: ClassVar[float] = 0.7
    step_ends: ClassVar[str] = ""
    """Symbols, each one token, that end a step of a response; the stop symbol ends its last one. Without any, a
    response is one step, and methods that need `steps` are refused; a task that has some grants them."""
    rows: ClassVar[int] = 1024
    """How many sequences are generated or scored at a time."""
    scored_rows: ClassVar[int] = 0
    """How many are scored at a time, where logits at all places of long responses leave room for fewer."""

    def build(self, data: Data) -> Bundle:
        """Make or decode the problems and the first policy; runs once, in a process of its own."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """The architecture, a causal language model of `transformers`; the harness loads the bundle's weights.

        Only parameters that require a gradient are trained, kept and checkpointed.
        """
        raise NotImplementedError

    def policy(self, weights: Mapping[str, Tensor], precision: str) -> nn.Module:
        """The first policy: `model` with the bundle's weights. What is not trained may be held in `precision`."""
        model = self.model()
        model.load_state_dict(weights)
        return model

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        """The problems of one run, equal for all methods. Called by the scorer; it may read answers."""
        raise NotImplementedError

    def prompts(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        """The prompts of the problems `indices`, template included; must be a pure function."""
        raise NotImplementedError

    def answer(self, response: str) -> str | None:
        """The final answer in a response, None where it is not of the declared form: a strict parser.

        Where responses hold code (`Grants.code`), it is given what their program printed.
        """
        raise NotImplementedError

    def steps(self, response: str) -> list[str]:
        """The steps of a whole response, each with the symbol that ends it; joined they are the response."""
        found = [""]
        for symbol in response:
            found[-1] += symbol
            if symbol in self.step_ends:
                found.append("")
        return found

    def step_tokens(self) -> list[int]:
        """The tokens that end a step."""
        symbols = list(self.step_ends)
        ids: list[int] = self.tokenizer().encode(symbols)[0].ravel().tolist() if symbols else []
        return ids

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """The true answers of the problems `indices`; called by the scorer alone."""
        raise NotImplementedError

    def accepts(self, answer: str, truth: str) -> bool:
        """Whether an answer is right, given the true one."""
        return answer == truth

    def scores(self, answers: Sequence[str | None], truths: Sequence[str]) -> Mapping[str, float]:
        """`accuracy`, and what else is worth a column, of the greedy answers to all test problems in their order."""
        right = (a is not None and self.accepts(a, b) for a, b in zip(answers, truths, strict=True))
        return {"accuracy": sum(right) / len(truths)}

    def grants(self) -> Grants:
        """What methods may ask for: an object for each need that the registration declares in its `grants`."""
        return Grants()

    def measures(self) -> Measures:
        """What is measured beside the scores of greedy answers and the votes."""
        return Measures()
