"""Prompts with responses as token sequences: in batches by length, scored, and ready for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array
from .language_model import alike, has_large_head, response_logits, response_logprobs, shared_beginning
from .tokens import CUT_OFF, Tokenizer

_WINDOW, _SIMILAR = 8, 8
"""In training, examples are sorted by length among so many batches, and lengths within so many tokens count as equal:
sorting them all would put like problems together."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with responses and stop symbols: `ids` int64 (N, L), where responses begin, and lengths, int64 (N,)."""

    ids: Array
    starts: Array
    lengths: Array
    shared: int = 0
    """How many tokens all prompts begin with, as far as it is worth running them once."""
    observed: tuple[int, ...] = ()
    """Tokens in responses that an environment wrote: they are neither scored nor trained on."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, chosen: Array, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids (B, T) and which of them belong to responses (B, T), cut to the longest of the batch."""
        longest = int(self.lengths[chosen].max())
        column = np.arange(longest)
        response = (column >= self.starts[chosen, None]) & (column < self.lengths[chosen, None])
        ids = self.ids[chosen, :longest]
        if self.observed:
            response &= ~np.isin(ids, self.observed)
        return torch.from_numpy(ids).to(device), torch.from_numpy(response).to(device)

    def part(self, chosen: Array) -> Sequences:
        """Those at the indices `chosen`."""
        return replace(self, ids=self.ids[chosen], starts=self.starts[chosen], lengths=self.lengths[chosen])

    def scored(self) -> Array:
        """How many tokens of each response are scored or trained on, int64 (N,)."""
        written: Array = self.lengths - self.starts
        if not self.observed:
            return written
        column = np.arange(self.ids.shape[1])
        inside = (column >= self.starts[:, None]) & (column < self.lengths[:, None])
        observed: Array = (inside & np.isin(self.ids, self.observed)).sum(axis=1)
        return written - observed

    def logprobs(self, model: nn.Module, chosen: Array, device: torch.device) -> Tensor:
        """Log-probabilities (B,) of the responses `chosen`, summed over their tokens.

        Prompts of two kinds, each of which begins alike, pass one kind after the other: short ones are not padded to
        the length of the others, and what a kind begins with is run once. It takes a large model to be worth it.
        """
        kinds = alike(self.ids[chosen], self.starts[chosen]) if has_large_head(model) and not self.shared else []
        if not any(shared for _, shared in kinds):
            return self._logprobs(model, chosen, device, self.shared)
        found = torch.cat([self._logprobs(model, chosen[rows], device, shared) for rows, shared in kinds])
        order = np.argsort(np.concatenate([rows for rows, _ in kinds]))
        return found[torch.from_numpy(order).to(device)]

    def _logprobs(self, model: nn.Module, chosen: Array, device: torch.device, shared: int) -> Tensor:
        first = int(self.starts[chosen].min())
        return response_logprobs(model, *self.batch(chosen, device), shared=shared, first=first)

    def logits(self, model: nn.Module, chosen: Array, device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits (R, V) at the places of the response tokens of `chosen`, row by row, and these tokens (R,)."""
        first = int(self.starts[chosen].min())
        return response_logits(model, *self.batch(chosen, device), shared=self.shared, first=first)

    def batches(self, size: int, draw: np.random.Generator | None = None) -> Iterator[Array]:
        """Indices in batches, sorted by length; `draw` shuffles them, and sorts within every `_WINDOW` batches
        alone."""
        order = np.arange(len(self)) if draw is None else draw.permutation(len(self))
        window = max(1, len(self)) if draw is None else size * _WINDOW
        windows = [order[at : at + window] for at in range(0, len(order), window)]
        key = self.lengths if draw is None else self.lengths // _SIMILAR
        order = np.concatenate([part[np.argsort(key[part], kind="stable")] for part in windows])
        cut = [order[at : at + size] for at in range(0, len(order), size)]
        yield from cut if draw is None else (cut[at] for at in draw.permutation(len(cut)))


def join(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    responses: Sequence[str],
    unfinished: bool = False,
    observed: Sequence[int] = (),
) -> Sequences:
    """The token sequences of prompts with their responses, in which an environment wrote the tokens `observed`.

    Raises `ValueError` on a response that was cut off, unless `unfinished` ones are welcome: they have no stop symbol.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts, but {len(responses)} responses")
    whole = np.array([not response.endswith(CUT_OFF) for response in responses], np.int64)
    if not unfinished and not whole.all():
        raise ValueError("a response that was cut off cannot be scored or trained on: leave out what does not parse")
    first, starts = tokenizer.encode(prompts)
    second, more = tokenizer.encode([response.removesuffix(CUT_OFF) for response in responses])
    lengths = starts + more + whole
    ids = np.full((len(prompts), int(lengths.max(initial=1))), tokenizer.pad, np.int64)
    column = np.arange(ids.shape[1])
    ids[column < starts[:, None]] = first[np.arange(first.shape[1]) < starts[:, None]]
    ids[(column >= starts[:, None]) & (column < (starts + more)[:, None])] = second[
        np.arange(second.shape[1]) < more[:, None]
    ]
    ids[np.flatnonzero(whole), lengths[whole == 1] - 1] = tokenizer.stop
    return Sequences(ids, starts, lengths, shared_beginning(ids, starts), tuple(observed))
