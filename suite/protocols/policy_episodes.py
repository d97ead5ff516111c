"""Episodes: responses of a policy to which an environment writes its answers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import MethodError
from .policy import PolicyTask
from .policy_calls import Calls
from .texts import pack, unpack
from .tokens import CUT_OFF, Tokenizer

Reactions = Callable[[str, Sequence[int], Sequence[str]], Sequence[tuple[str, bool]]]
"""A part of the problems, their numbers in it (N,) and responses -> what is written after each, and whether it ends."""
Grow = Callable[[Sequence[str], Sequence[str]], Sequence[Sequence[str]]]
"""Prompts (N,) and what is begun of a response to each -> one response each, a step further; none without room."""


class Episodes:
    """The environment of a task, where it has one, as its policy meets it.

    `observed` are the tokens that it writes: they are never generated, scored or trained on.
    """

    def __init__(self, task: PolicyTask, tokenizer: Tokenizer, react: Reactions) -> None:
        environment = task.grants().environment
        self.observed = tokenizer.encode(list(environment.symbols))[0].ravel().tolist() if environment else []
        self._ends, self._react = set(task.step_ends), react
        self._places: dict[str, tuple[str, int]] = {}

    def place(self, part: str, prompts: Sequence[str]) -> None:
        """Say of which problems the prompts are, for an environment to know its world."""
        self._places |= {prompt: (part, number) for number, prompt in enumerate(prompts)}

    def are(self, prompts: Sequence[str]) -> bool:
        """Whether responses to the prompts are episodes: those to all problems of a task with an environment."""
        return bool(self.observed) and all(prompt in self._places for prompt in prompts)

    def answered(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """`responses` with the environment's answer to the action in which each ends; whole where the episode is over.

        What ends in no action is left as it is.
        """
        texts = [text.removesuffix(CUT_OFF) for text in responses]
        acted = [at for at, text in enumerate(texts) if text and text[-1] in self._ends]
        found = list(responses)
        for part in dict.fromkeys(self._places[prompts[at]][0] for at in acted):
            chosen = [at for at in acted if self._places[prompts[at]][0] == part]
            numbers = [self._places[prompts[at]][1] for at in chosen]
            answers = self._react(part, numbers, [texts[at] for at in chosen])
            for at, (answer, over) in zip(chosen, answers, strict=True):
                found[at] = texts[at] + answer + ("" if over else CUT_OFF)
        return found

    def each_answered(self, prompts: Sequence[str], made: Sequence[Sequence[str]]) -> list[list[str]]:
        """`answered` of any number of responses to each prompt."""
        asked = [prompt for prompt, texts in zip(prompts, made, strict=True) for _ in texts]
        answered = iter(self.answered(asked, [text for texts in made for text in texts]))
        return [[next(answered) for _ in texts] for texts in made]

    def play(self, grow: Grow, prompts: Sequence[str], n: int) -> list[list[str]]:
        """`n` episodes of every prompt to their ends; those that leave no room for another step stay cut off."""
        asked = [prompt for prompt in prompts for _ in range(n)]
        texts = [CUT_OFF] * len(asked)
        going = list(range(len(asked)))
        while going:
            made = grow([asked[at] for at in going], [texts[at] for at in going])
            grown = [at for at, found in zip(going, made, strict=True) if found]
            reached = self.answered([asked[at] for at in grown], [found[0] for found in made if found])
            for at, text in zip(grown, reached, strict=True):
                texts[at] = text
            going = [at for at in grown if texts[at].endswith(CUT_OFF)]
        return [texts[at * n : (at + 1) * n] for at in range(len(prompts))]


def by_the_scorer(calls: Calls) -> Reactions:
    """Reactions of the environment in the scorer's process."""

    def react(part: str, numbers: Sequence[int], responses: Sequence[str]) -> list[tuple[str, bool]]:
        arrays = {"numbers": np.asarray(numbers, np.int64), "responses": pack(responses)}
        wire = calls.context.wire
        with calls.meter.paused():
            wire.send("act", arrays, part=part)
            reply = wire.receive()
        if reply is None or reply.kind != "observed":
            raise MethodError("the scorer has gone")
        over = reply.arrays["over"].astype(bool).tolist()
        return list(zip(unpack(reply.arrays["texts"]), over, strict=True))

    return react
