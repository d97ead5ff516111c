"""The evaluation of a policy after a round: what it is asked, and what it answers; off the meter and off the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..bundle import Array
from ..errors import MethodError
from .context import autocast
from .policy import PolicyTask
from .policy_calls import Calls
from .policy_episodes import Episodes
from .policy_generation import Generation
from .policy_measures import Cloze
from .policy_scoring import Scoring
from .sampling import Sampling
from .texts import pack
from .tokens import Tokenizer

Asked = Callable[[Sequence[str]], list[str]]
"""Prompts (N,) -> what a method asks in place of each."""
Respond = Callable[[Sequence[str]], list[str]]
"""Prompts (N,) -> a method's responses, one each."""


class Evaluation:
    """Evaluations of one policy: `model` behind `generation` and `scoring`."""

    def __init__(
        self,
        model: nn.Module,
        task: PolicyTask,
        tokenizer: Tokenizer,
        generation: Generation,
        scoring: Scoring,
        episodes: Episodes,
        calls: Calls,
    ) -> None:
        self._positions = int(getattr(getattr(model, "config", None), "max_position_embeddings", 0))
        self._task, self._tokenizer = task, tokenizer
        self._generation, self._scoring, self._episodes, self._calls = generation, scoring, episodes, calls

    def responses(
        self, prompts: Sequence[str], number: int, cloze: Cloze | None = None, probes: Mapping[str, Cloze] = {}
    ) -> dict[str, Array]:
        """Greedy responses (T) and `votes` samples each (T votes), as packed texts, after round `number`.

        With a `cloze` of the prompts, the likeliest options (T) take the place of greedy responses. Of every probe, the
        numbers (Q,) of the likeliest options, under `probe:` and its name.
        """
        task, calls = self._task, self._calls
        generator = torch.Generator(calls.device).manual_seed(calls.evaluation_seed(number))
        found = {}
        with calls.meter.paused(), autocast(calls.context):
            for name, n, temperature in (("greedy", 1, 0.0), ("votes", task.votes, task.vote_temperature)):
                if not n or (cloze and name == "greedy"):
                    found[name] = pack([])
                    continue
                made = self._generation.sampled(prompts, n, Sampling(temperature), generator, _nobody)
                found[name] = pack([response for group in made for response in group])
            if cloze:
                chosen = self._scoring.likeliest(cloze).tolist()
                found["greedy"] = pack([options[at] for options, at in zip(cloze.options, chosen, strict=True)])
            found |= {f"probe:{name}": self._scoring.likeliest(probe) for name, probe in probes.items()}
        return found

    def asks(self, asked: Asked, prompts: Sequence[str], cloze: Cloze | None = None) -> tuple[list[str], Cloze | None]:
        """What a method asks in place of the test prompts, and of the questions of a `cloze` of them.

        Raises `MethodError` where a prompt leaves no room for a response, or an option, among the model's positions.
        """
        shown = asked(prompts)
        self._episodes.place("test", shown)
        self._fit(shown, prompts, self._task.max_new)
        if cloze is None:
            return shown, None
        questions = asked(cloze.prompts)
        _, lengths = self._tokenizer.encode([option for options in cloze.options for option in options])
        self._fit(questions, cloze.prompts, int(lengths.max(initial=0)))
        return shown, cloze._replace(prompts=questions)

    def answers(self, respond: Respond, prompts: Sequence[str], number: int) -> tuple[list[str], int]:
        """What a method answers to the prompts after round `number` in its own way, and the tokens that it takes."""
        with self._calls.answers_after(number) as meter:
            made = respond(prompts)
        if len(made) != len(prompts):
            raise MethodError(f"method '{meter.owner}' gave {len(made)} responses to {len(prompts)} prompts")
        return made, meter.counts.tokens

    def _fit(self, asked: Sequence[str], prompts: Sequence[str], room: int) -> None:
        owner = self._calls.meter.owner
        if len(asked) != len(prompts):
            raise MethodError(f"method '{owner}' asks {len(asked)} prompts in place of {len(prompts)}")
        longest = int(self._tokenizer.encode(asked)[1].max(initial=0))
        if self._positions and longest + room > self._positions:
            raise MethodError(
                f"method '{owner}' asks prompts of up to {longest} tokens, to which up to {room} are added, but the "
                f"model has {self._positions} positions: it has to show less"
            )


def _nobody(sequences: int, tokens: int) -> None:
    """An evaluation is charged to nobody."""
