"""What a policy generates: samples of responses, or of episodes, kept for a killed run and charged in tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from .context import autocast
from .generation import Sampler, generate
from .policy import PolicyTask
from .policy_calls import Calls
from .policy_episodes import Episodes
from .policy_weights import Weights
from .rollouts import Charge
from .sampling import Sampling
from .tokens import Tokenizer


class Generation:
    """Responses of the policy whose model `sampler` draws from."""

    def __init__(
        self, sampler: Sampler, task: PolicyTask, tokenizer: Tokenizer, weights: Weights, episodes: Episodes,
        calls: Calls,
    ) -> None:  # fmt: skip
        self._sampler, self._tokenizer = sampler, tokenizer
        self._weights, self._episodes, self._calls = weights, episodes, calls
        self._max_new = task.max_new
        self.ends: Sequence[int] = task.step_tokens()
        """The tokens that end a step."""

    def responses(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        under: str = "",
        begun: Sequence[str] = (),
        ends: Sequence[int] = (),
        max_new: int = 0,
    ) -> list[list[str]]:
        """One call's responses (arguments as in `Policy.generate` and `generation.generate`)."""
        seed = self._calls.next_seed("generate")

        def work(charge: Charge) -> list[list[str]]:
            generator = torch.Generator(self._calls.device).manual_seed(seed)
            with self._weights.under(under), autocast(self._calls.context):
                return self.sampled(prompts, n, sampling, generator, charge, begun, ends, max_new)

        about = ("generate", seed, list(prompts), list(begun), list(ends), n, sampling.temperature, sampling.top_p,
                 max_new)  # fmt: skip
        made: list[list[str]] = self._calls.made("generated", self._weights.named(under), about, work)
        return made

    def sampled(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        generator: torch.Generator,
        charge: Charge,
        begun: Sequence[str] = (),
        ends: Sequence[int] = (),
        max_new: int = 0,
    ) -> list[list[str]]:
        """`n` responses to every prompt; to those of problems with an environment, episodes, or steps of them."""
        episodes = self._episodes
        played = episodes.are(prompts)
        sample = functools.partial(
            generate, self._sampler, self._tokenizer, sampling=sampling, max_new=max_new or self._max_new,
            generator=generator, charge=charge,
            never=[*episodes.observed, self._tokenizer.stop] if played else episodes.observed,
        )  # fmt: skip
        if not played:
            return sample(prompts, n, begun=begun, ends=ends)
        if ends:
            return episodes.each_answered(prompts, sample(prompts, n, begun=begun, ends=ends))
        return episodes.play(lambda asked, texts: sample(asked, 1, begun=texts, ends=self.ends), prompts, n)
