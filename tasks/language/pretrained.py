"""Policies that are pre-trained language models with adapters: what their tasks share."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.errors import GateError
from ...suite.places import cache_folder, data_folder
from ...suite.protocols.language_model import response_logprobs
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import PolicyTask
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_grants import Attempts, Critique
from ...suite.protocols.policy_grants.shots import in_a_row
from ...suite.protocols.sequences import join
from ...suite.protocols.texts import pack, unpack
from ...suite.protocols.tokens import CUT_OFF
from .models import (
    SubwordTokenizer,
    adapters,
    add_adapters,
    chat_frame,
    chat_turn,
    checkpoint,
    digest,
    load_model,
    set_precision,
)

if TYPE_CHECKING:
    from torch import Tensor

JUDGING = """You are a strict judge. You give the answer to a question 0 to 5 points, one for each of these that holds:
- it is about the question;
- it gives a part of what is asked for;
- it gives all that is asked for;
- it is right;
- it is right, and written just as it had to be, with nothing around it that does not belong there."""
"""The system's words to a policy that judges: a rubric of five points that add up."""
_ASKED = "Say in a sentence what holds and what does not. End with `Score: ` and the number of points.\n\n"
_SCORE = re.compile(r".*\bScore: ([0-5])(?:/5)?\.?\s*", re.S)
LINES = "\n"
"""The `step_ends` of responses whose lines are steps."""
_LINE = re.compile(r"[^\n]*\n\s*|[^\n]+")
RIGHT, WRONG = "Right.", "Wrong."
_WRONG_LINE = re.compile(r"Line [1-9][0-9]* is wrong\.")
_SENTENCE = " The sun rises in the east and sets in the west. Water freezes at zero degrees and boils at one hundred."


class PretrainedPolicy(PolicyTask):
    """A pre-trained model, whose adapters alone are trained, and problems in its chat template.

    Public arrays: what `read` gives, `frame` (what the chat template writes before and after a question) and
    `model_sha256`, so that template and weights are part of the bundle's digest; the bundle's model is the adapters as
    they begin, a change of nothing. A task gives `read`, `questions`, and what every policy task gives.
    """

    model_name: ClassVar[str] = "smollm2"
    """A data set with the files of a language model, see `models.py`."""
    stop: ClassVar[str] = "<|im_end|>"
    pad: ClassVar[str] = "<|endoftext|>"
    system: ClassVar[str] = ""
    """The system's words in the chat template; without any, those that the template has by default."""
    frame: ClassVar[tuple[str, str] | None] = None
    """What stands before and after a question, in place of the model's chat template."""
    attention: ClassVar[str] = "eager"
    """For short texts on a CPU faster than torch's fused one, whose backward pass takes a fifth of a step there."""
    rank: ClassVar[int] = 16
    scale: ClassVar[float] = 2.0
    adapter_seed: ClassVar[int] = 0
    gate: ClassVar[tuple[float, float] | None] = None
    """Between which the model's mean negative log-likelihood a token of a plain English sentence must lie."""
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=1e-3, weight_decay=0.0, batch_size=16, schedule=half_cosine(0.1), max_norm=1.0
    )
    rows: ClassVar[int] = 256
    scored_rows: ClassVar[int] = 64
    judgement_tokens: ClassVar[int] = 64
    """After how many tokens a judgement is cut off."""

    def read(self, data: Data) -> Bundle:
        """The task's own arrays and facts."""
        raise NotImplementedError

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        """The problems `indices` in a user's words."""
        raise NotImplementedError

    def build(self, data: Data) -> Bundle:
        self.tell("reading the model")
        folder = checkpoint(data, self.model_name)
        model = load_model(folder, self.attention)
        frame = chat_frame(folder, self.system) if self.frame is None else self.frame
        nll = self._measure(model)
        add_adapters(model, self.rank, self.scale, self.adapter_seed)
        bundle = self.read(data)
        sha256 = digest(data, self.model_name)
        return Bundle(
            public={**bundle.public, "frame": pack(frame), "model_sha256": pack([sha256])},
            private=bundle.private,
            model=adapters(model),
            facts={
                **bundle.facts,
                "model": self.model_name,
                "model_sha256": sha256,
                "frame": list(frame),
                "nll": round(nll, 3),
                "parameters": sum(value.numel() for value in model.parameters()),
                "trained": sum(value.numel() for value in adapters(model).values()),
            },
        )

    def _measure(self, model: nn.Module) -> float:
        """The mean negative log-likelihood a token; raises `GateError` where it is off the declared range."""
        sequences = join(self.tokenizer(), ["The weather today."], [_SENTENCE])
        with torch.no_grad():
            logprobs = response_logprobs(model, *sequences.batch(np.arange(1), torch.device("cpu")))
        nll = -float(logprobs) / int((sequences.lengths - sequences.starts)[0])
        if self.gate is not None and not self.gate[0] <= nll <= self.gate[1]:
            raise GateError(
                f"The model '{self.model_name}' gives plain English {nll:.2f} nats a token, declared are "
                f"{self.gate[0]:g} to {self.gate[1]:g}: weights, tokenizer and code do not fit each other. Compare its "
                f"files with the published ones (`selfbench data verify {self.model_name}`); for another model let the "
                "task declare another `gate`."
            )
        return nll

    def model(self) -> nn.Module:
        model = load_model(checkpoint(Data(data_folder()), self.model_name), self.attention)
        add_adapters(model, self.rank, self.scale, self.adapter_seed)
        return model  # type: ignore[no-any-return]

    def policy(self, weights: Mapping[str, Tensor], precision: str) -> nn.Module:
        model = self.model()
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        if unknown or adapters(model).keys() != weights.keys():
            raise GateError(
                f"The adapters of the bundle are not those of the model '{self.model_name}': its files, or the package "
                f"peft, have changed since it was built. Delete the task's folder in {cache_folder() / 'bundles'} and "
                "start the run again, which builds it anew."
            )
        set_precision(model, precision)
        return model

    @functools.cached_property
    def _tokens(self) -> SubwordTokenizer:
        return SubwordTokenizer(checkpoint(Data(data_folder()), self.model_name), self.stop, self.pad)

    def tokenizer(self) -> SubwordTokenizer:
        return self._tokens

    def prompts(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        before, after = unpack(public["frame"])
        return [before + question + after for question in self.questions(public, indices)]

    def preceded(self, prompt: str, shots: Sequence[Example]) -> str:
        """`prompt` after worked problems: earlier turns of the chat, as its template writes them, after the system's
        words; in a frame of the task's own, one after the other with an empty line between them."""
        if self.frame is not None or not shots:
            return in_a_row(prompt, shots)
        before, between = self._turn
        texts = [*(one.prompt + one.response for one in shots), prompt]
        return before + between.join(text.removeprefix(before) for text in texts)

    def steps(self, response: str) -> list[str]:
        """Where newlines end steps, the lines, each with the empty ones that follow it."""
        if self.step_ends != LINES:
            return super().steps(response)
        return _LINE.findall(response) or [""]

    def step_tokens(self) -> list[int]:
        """Where newlines end steps, every token that has one in it: `.` and a newline are often one token."""
        return self.tokenizer().containing(LINES) if self.step_ends == LINES else super().step_tokens()

    def attempts(self) -> Attempts:
        """Feedback and further attempts as turns of the same chat."""
        return Attempts(self.again, Critique(self.critic, self.feedback, self.approves))

    def again(self, prompt: str, response: str, feedback: str = "") -> str:
        """`... 47 + 85? / 122 / Wrong. Try again.`, each a turn of the chat."""
        return self._replied(prompt, response, f"{feedback} Try again.".lstrip())

    def critic(self, prompt: str, response: str) -> str:
        """`... 47 + 85? / 122 / Is this right?`, each a turn of the chat."""
        return self._replied(prompt, response, "Is this right?")

    def _replied(self, prompt: str, response: str, words: str) -> str:
        """The chat after `response`, a user's `words` next, and the turn of the assistant begun."""
        _, between = self._turn
        (_, after), _ = self._frames
        return f"{prompt}{response.removesuffix(CUT_OFF)}{between}{words}{after}"

    def feedback(self, right: Sequence[bool]) -> str:
        """`Right.`, else `Wrong.`, or which line is the first wrong one where responses have several."""
        if all(right):
            return RIGHT
        return f"Line {list(right).index(False) + 1} is wrong." if self.step_ends == LINES else WRONG

    def approves(self, feedback: str) -> bool | None:
        if self.step_ends == LINES and _WRONG_LINE.fullmatch(feedback):
            return False
        return feedback == RIGHT if feedback in (RIGHT, WRONG) else None

    def judge(self, prompt: str, response: str) -> str:
        """A chat that begins with the rubric and asks for the points of an answer, whatever frame the prompt has."""
        (before, after), (begin, end) = self._frames
        question = prompt.removeprefix(before).removesuffix(after)
        told = f"How it had to be answered: {self.system}\n\n" if self.system else ""
        return f"{begin}{_ASKED}{told}Question: {question}\n\nAnswer: {response.strip()}{end}"

    def points(self, judgement: str) -> float | None:
        """The number after the last `Score: `, which ends a judgement; None where it does not, or was cut off."""
        match = _SCORE.fullmatch(judgement)
        return float(match[1]) if match else None

    def judgement(self, right: Sequence[bool]) -> str:
        if all(right):
            return "It gives all that is asked for, it is right, and it is written as it had to be. Score: 5"
        return "It is about the question and gives a part of what is asked for, but it is not right. Score: 2"

    @functools.cached_property
    def _turn(self) -> tuple[str, str]:
        return chat_turn(checkpoint(Data(data_folder()), self.model_name), self.system)

    @functools.cached_property
    def _frames(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """What stands before and after a question of the task, and before and after one to the judge."""
        folder = checkpoint(Data(data_folder()), self.model_name)
        return self.frame or chat_frame(folder, self.system), chat_frame(folder, JUDGING)


def split_by_seed(others: Array, draw: np.random.Generator, *sizes: int) -> list[Array]:
    """Disjoint parts of `others` of the given sizes, drawn one after the other, so that a smaller first part is the
    beginning of a larger one; raises `ValueError` where there are too few."""
    if sum(sizes) > len(others):
        raise ValueError(f"{len(others)} problems cannot be divided into parts of {', '.join(map(str, sizes))}")
    order = draw.permutation(others)
    ends = np.cumsum(sizes)
    return [np.sort(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
