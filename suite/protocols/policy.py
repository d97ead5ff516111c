"""The protocol `policy`: a language model that improves itself in rounds, and is evaluated after each.

`PolicyTask` is what a task author writes, `PolicyMethod` what a method author writes: one function, `round`. The model
stands behind the narrow interface of `Policy` (`policy_model.py`): generate, logprobs, finetune, prefer, each batched
and metered in tokens. True answers stay with the scorer, in another process; a verifier, where a task grants one,
answers from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from torch import nn

from ..bundle import Array, Bundle, BundleFolder
from ..hyper import hyper
from ..sandbox import Limits
from .optimisation import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Data
    from .language_model import Tokenizer
    from .policy_model import Policy
    from .policy_view import PolicyView


class Example(NamedTuple):
    """A prompt and a response to train on; the stop symbol is added by the harness."""

    prompt: str
    response: str


class Pair(NamedTuple):
    """Two responses to a prompt, of which `chosen` is held to be the better one."""

    prompt: str
    chosen: str
    rejected: str


class Referenced(NamedTuple):
    """A response to two prompts, of which `referenced` also shows a reference; the one learns from the other."""

    prompt: str
    referenced: str
    response: str


class Cloze(NamedTuple):
    """Prompts (Q,) and the options of each, of which a model means the one that is likeliest to follow."""

    prompts: Sequence[str]
    options: Sequence[Sequence[str]]


class Rollout(NamedTuple):
    """A sampled response and what it is paid; `kl` weighs its log pi / pi_ref, which is taken off the reward.

    The baseline of a reward is the mean of its `group`. A response that was cut off is welcome.
    """

    prompt: str
    response: str
    reward: float
    kl: float = 0.0
    group: int = 0


@dataclass(frozen=True)
class Problems:
    """Which problems are which in one run: index arrays into the task's problems.

    `demonstrations` (D,) are shown with their worked `responses`, `pool` (U,) as prompts alone; `test` (T,) are those
    of the evaluation. `probe` (P,) are labelled problems of the judge's gate, which are none of the others. Raises
    `ValueError` where a test problem is also shown.
    """

    demonstrations: Array
    responses: Sequence[str]
    pool: Array
    test: Array
    probe: Array = field(default_factory=lambda: np.zeros(0, np.int64))

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
    `answer`: all of them are part of the task's version.
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
    verdicts: ClassVar[int] = 64
    """How many different answers to one prompt the verifier judges in a run: too few to find the answer by asking."""
    probe_samples: ClassVar[int] = 4
    """Responses to each problem of the judge's gate, sampled at `vote_temperature` whenever a method asks it."""
    step_ends: ClassVar[str] = ""
    """Symbols, each one token, that end a step of a response; the stop symbol ends its last one. Without any, a
    response is one step."""
    code_limits: ClassVar[Limits] = Limits()
    """What the code of one response may take, where responses hold code."""
    observations: ClassVar[str] = ""
    """Symbols, each one token, that an environment writes into responses: they are never generated, scored or trained
    on. With any, a response to a problem is an episode, each of whose steps is followed by `react`, and which the
    environment ends."""
    revision: ClassVar[str] = ""
    """The step by which a policy takes its last one back; for tasks that grant `environment`."""
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

        Where responses hold code, it is given what their `program` printed.
        """
        raise NotImplementedError

    def program(self, response: str) -> str | None:
        """The code of a response, whole or cut off at the end of code: a program whose output is its answer.

        None where it has none of the declared form. For tasks that grant `code`, as the one below.
        """
        raise NotImplementedError

    def observed(self, response: str, output: str) -> str | None:
        """A response that was cut off at the end of code, with what its `program` printed written behind it.

        None where it was cut off elsewhere, or the output cannot be written.
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

    def hinted(self, prompt: str, answer: str) -> str:
        """`prompt` with the true answer given away, for rationales; for tasks that grant `answers`."""
        raise NotImplementedError

    def again(self, prompt: str, response: str, feedback: str = "") -> str:
        """The prompt of another attempt at `prompt` that shows the one before, whole or cut off, and feedback on it.

        This and the three below are for tasks that grant `attempts`.
        """
        raise NotImplementedError

    def critic(self, prompt: str, response: str) -> str:
        """The prompt that asks for feedback on `response`, whole or cut off."""
        raise NotImplementedError

    def feedback(self, right: Sequence[bool]) -> str:
        """Feedback that says of each step whether it is right."""
        raise NotImplementedError

    def approves(self, feedback: str) -> bool | None:
        """Whether feedback finds nothing wrong; None where it is not of the form of `feedback`."""
        raise NotImplementedError

    def ratings(self, response: str) -> tuple[float, ...]:
        """What a judgement that parses gives each response that it judges, in [0, 1].

        This and the three below are for tasks of judging; the last three for those that grant `references`.
        """
        raise NotImplementedError

    def referenced(self, prompt: str, reference: str) -> str:
        """`prompt` with a reference answer to its problem shown."""
        raise NotImplementedError

    def similarities(self, prompt: str, reference: str) -> tuple[float, ...]:
        """A rough likeness, in [0, 1], of each response that `prompt` shows and the reference."""
        raise NotImplementedError

    def references(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """Reference answers to the problems `indices`; called by the scorer alone."""
        raise NotImplementedError

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """The true answers of the problems `indices`; called by the scorer alone."""
        raise NotImplementedError

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """Worked responses to the problems `indices`; called by the scorer alone, for tasks that grant `solutions`."""
        raise NotImplementedError

    def worlds(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """What the environment has to know of the problems `indices`; called by the scorer alone, as is `react`."""
        raise NotImplementedError

    def react(self, world: str, response: str) -> tuple[str, bool]:
        """What the environment writes after `response`, of one symbol or more, and whether the episode is over.

        It must be a pure function: what came before is in the response.
        """
        raise NotImplementedError

    def accepts(self, answer: str, truth: str) -> bool:
        """Whether an answer is right, given the true one."""
        return answer == truth

    def scores(self, answers: Sequence[str | None], truths: Sequence[str]) -> Mapping[str, float]:
        """`accuracy`, and what else is worth a column, of the greedy answers to all test problems in their order."""
        right = (a is not None and self.accepts(a, b) for a, b in zip(answers, truths, strict=True))
        return {"accuracy": sum(right) / len(truths)}

    def lenient(self, response: str) -> str | None:
        """The answer by a second, lenient parser, whose accuracy is a column; a task that has one overrides this."""
        return self.answer(response)

    def cloze(self, public: Mapping[str, Array], indices: Array) -> Cloze | None:
        """For tasks that are answered by likelihood in place of generation: the options of the problems `indices`."""
        return None

    def probes(self, public: Mapping[str, Array]) -> Mapping[str, Cloze]:
        """What else is measured after every round, off the meter, such as what a policy has forgotten: by name."""
        return {}

    def probe_answers(self, private: Mapping[str, Array]) -> Mapping[str, Array]:
        """The numbers (Q,) of the right options of every probe; called by the scorer alone."""
        return {}

    def groups(self, prompts: Sequence[str]) -> list[str] | None:
        """Kinds of problems by which the accuracy is shown apart, one a prompt, or None."""
        return None


@dataclass
class PolicyMethod:
    """A method for a policy that trains itself: a dataclass whose fields are its hyper-parameters.

    `round` is called once a round, with the number of the round from 1. State between rounds lives in plain attributes;
    weights of earlier rounds are kept by the policy (`keep`, `use`).
    """

    lr_scale: float = hyper(1.0, low=0.1, high=10.0, log=True, help="learning rate as a multiple of the task's recipe")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def setup(self, policy: Policy, view: PolicyView) -> None:
        """Called once before the first round, and again when a killed run is resumed."""

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        """Improve `policy` from what `view` shows; the harness evaluates it afterwards, off the clock."""
        raise NotImplementedError

    def respond(self, policy: Policy, prompts: Sequence[str]) -> list[str]:
        """The responses that are evaluated, one a prompt: greedy ones, unless a method answers in a way of its own.

        Called by the evaluation with its prompts, off the meter and the clock; `policy` cannot be trained meanwhile.
        The record holds the greedy accuracy and the tokens that an own way takes.
        """
        return [response for [response] in policy.generate(prompts, 1, 0.0)]
