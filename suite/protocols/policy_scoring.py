"""Log-probabilities of responses under a policy and its kept weights, and the likeliest of given options."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array
from . import language_model
from .context import autocast
from .policy import PolicyTask
from .policy_calls import Calls
from .policy_measures import Cloze
from .policy_weights import Weights
from .rollouts import Charge
from .sequences import Sequences
from .tokens import Tokenizer


class Scoring:
    """Scores by `model` under weights of a name; an empty name stands for the weights as they are."""

    def __init__(
        self, model: nn.Module, task: PolicyTask, tokenizer: Tokenizer, weights: Weights, calls: Calls
    ) -> None:
        self._model, self._tokenizer, self._weights, self._calls = model, tokenizer, weights, calls
        self._rows = task.scored_rows or task.rows
        self._reference: dict[tuple[str, str, str], float] = {}

    def logprobs(self, sequences: Sequences, under: str) -> Tensor:
        """Log-probabilities (N,) of the responses, summed over their tokens, float64 on the CPU."""

        def work(charge: Charge) -> list[float]:
            values = torch.empty(len(sequences), dtype=torch.float64)
            with self._weights.under(under), torch.no_grad(), autocast(self._calls.context):
                for chosen in sequences.batches(self._rows):
                    charge(len(chosen), int(sequences.lengths[chosen].sum()))
                    logprobs = sequences.logprobs(self._model, chosen, self._calls.device)
                    values[torch.from_numpy(chosen)] = logprobs.double().cpu()
            return values.tolist()

        parts = (sequences.ids, sequences.starts, sequences.lengths)
        about = ("score", *(hashlib.sha256(part.tobytes()).hexdigest() for part in parts))
        made = self._calls.made("scored", self._weights.named(under), about, work)
        return torch.tensor(made, dtype=torch.float64)

    def by_reference(
        self, sequences: Sequences, prompts: Sequence[str], responses: Sequence[str], under: str
    ) -> Tensor:
        """Log-probabilities (N,) under a reference policy: those of this round's earlier calls come from a cache.

        A pass from the cache counts as if it were computed.
        """
        keys = [(under, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        absent = np.array([at for at, key in enumerate(keys) if not under or key not in self._reference], np.int64)
        cached = np.setdiff1d(np.arange(len(sequences)), absent)
        self._calls.meter.charge(forward=len(cached), scored=int(sequences.lengths[cached].sum()))
        values = torch.empty(len(sequences), dtype=torch.float64)
        if len(absent):
            values[torch.from_numpy(absent)] = self.logprobs(sequences.part(absent), under)
        for at in cached.tolist():
            values[at] = self._reference[keys[at]]
        if under:
            self._reference.update(zip(keys, values.tolist(), strict=True))
        return values

    def forget_references(self) -> None:
        """Empty the cache of `by_reference`: a round begins, or what a name stands for has changed."""
        self._reference.clear()

    def likeliest(self, cloze: Cloze) -> Array:
        """The numbers (Q,) of the likeliest options; charged to nobody."""
        return language_model.likeliest(
            self._model, self._tokenizer, cloze.prompts, cloze.options, self._rows, self._calls.device
        )
