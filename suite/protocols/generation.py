"""Generation: responses to prompts, drawn token by token.

`generate` goes from texts to token ids and back. What draws the ids is a `Sampler`, the seam behind which engines of
generation stand: `OwnSampler` runs the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array
from .language_model import CUT_OFF, Tokenizer, join, next_logits, read
from .rollouts import Charge

_FINE = 1 << 40
"""Steps into which probabilities are cut for `top_p`: sums of integers are exact in any order, on any device."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_p` keeps the likeliest tokens whose probabilities sum to it."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("a temperature is at least 0, top_p lies in (0, 1]")


class Sampler(Protocol):
    """What continues prompts with the weights that a model holds when it is called."""

    def __call__(
        self,
        ids: Array,
        lengths: Array,
        room: Array,
        n: int,
        sampling: Sampling,
        *,
        ends: Sequence[int],
        never: Sequence[int],
        generator: torch.Generator,
        charge: Charge,
    ) -> Array:
        """Token ids int64 (P n, T) that follow the prompts ids (P, L), of `lengths` (P,), padded on the right.

        The `n` responses to a prompt stand beside each other, of at most `room` (P,) tokens, at least 1. Each ends with
        the stop symbol or one of `ends`, which belong to it, and is padded; padding and the tokens `never` are not
        drawn. All randomness comes from `generator`. `charge(sequences, tokens)` is told before the work: sequences
        that are begun, and tokens that are drawn, of which those that have stopped take none.
        """


@dataclass(frozen=True)
class OwnSampler:
    """The model itself, step by step: prompts sorted by length, `rows` responses at a time."""

    model: nn.Module
    tokenizer: Tokenizer
    rows: int

    def __call__(
        self,
        ids: Array,
        lengths: Array,
        room: Array,
        n: int,
        sampling: Sampling,
        *,
        ends: Sequence[int],
        never: Sequence[int],
        generator: torch.Generator,
        charge: Charge,
    ) -> Array:
        order, per = np.argsort(lengths, kind="stable"), max(1, self.rows // n)
        made = np.full((len(ids), n, int(room.max())), self.tokenizer.pad, np.int64)
        with torch.no_grad():
            for start in range(0, len(order), per):
                chosen = order[start : start + per]
                charge(len(chosen) * n, 0)
                drawn = self._batch(ids[chosen], lengths[chosen], room[chosen], n, sampling, ends, never, generator,
                                    charge)  # fmt: skip
                made[chosen, :, : drawn.shape[1]] = drawn.reshape(len(chosen), n, -1)
        return made.reshape(len(ids) * n, -1)

    def _batch(
        self,
        ids: Array,
        lengths: Array,
        room: Array,
        n: int,
        sampling: Sampling,
        ends: Sequence[int],
        never: Sequence[int],
        generator: torch.Generator,
        charge: Charge,
    ) -> Array:
        """The token ids (B n, T) of one batch, T as many as the longest response has."""
        model, tokenizer, device = self.model, self.tokenizer, generator.device
        most = int(room.max())
        logits, mask, cache = read(model, ids, lengths, tokenizer.pad, device)
        if n > 1:
            cache.batch_repeat_interleave(n)
            logits = logits.repeat_interleave(n, dim=0)
            mask = mask.repeat_interleave(n, dim=0) if mask is not None else None
        position = torch.from_numpy(lengths).to(device).repeat_interleave(n)[:, None]
        done = torch.zeros(len(logits), dtype=torch.bool, device=device)
        # Where all may be equally long, the number of steps alone ends them.
        shorter = torch.from_numpy(room).to(device).repeat_interleave(n) if bool((room < most).any()) else None
        closing = torch.tensor(list(ends), device=device)
        tokens: list[Tensor] = []
        while True:
            charge(0, int((~done).sum()))
            if len(never):
                logits[:, list(never)] = -torch.inf
            token = _choose(logits, sampling, tokenizer.pad, generator).masked_fill(done, tokenizer.pad)
            tokens.append(token)
            done |= token == tokenizer.stop
            if len(ends):
                done |= torch.isin(token, closing)
            if shorter is not None:
                done |= shorter <= len(tokens)
            if len(tokens) == most or bool(done.all()):
                return torch.stack(tokens, dim=1).cpu().numpy()
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = next_logits(model, token[:, None], mask, position + len(tokens) - 1, cache)


def generate(
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n: int,
    sampling: Sampling,
    *,
    max_new: int,
    generator: torch.Generator,
    charge: Charge = lambda sequences, tokens: None,
    begun: Sequence[str] = (),
    ends: Sequence[int] = (),
    never: Sequence[int] = (),
) -> list[list[str]]:
    """`n` responses to every prompt, of at most `max_new` tokens each; `charge` and `never` as in `Sampler`.

    `begun`, one a prompt, are responses that go on, each ending in `CUT_OFF`; their tokens count among `max_new`, and
    one that leaves no room gets no response. Tokens `ends` end a response as `max_new` does: it is unfinished, and ends
    in `CUT_OFF`.
    """
    if not len(prompts):
        return []
    ids, lengths = tokenizer.encode(prompts)
    room = np.full(len(ids), max_new)
    if len(begun):
        joined = join(tokenizer, prompts, begun, unfinished=True)
        ids, lengths, room = joined.ids, joined.lengths, max_new - (joined.lengths - joined.starts)
    found: list[list[str]] = [[] for _ in prompts]
    going = np.flatnonzero(room > 0)
    if not len(going):
        return found
    made = sampler(
        ids[going], lengths[going], room[going], n, sampling, ends=ends, never=never, generator=generator,
        charge=charge,
    )  # fmt: skip
    texts = tokenizer.decode(made)
    for at, prompt in enumerate(going.tolist()):
        first = begun[prompt].removesuffix(CUT_OFF) if len(begun) else ""
        found[prompt] = [first + text for text in texts[at * n : (at + 1) * n]]
    return found


def _choose(logits: Tensor, sampling: Sampling, pad: int, generator: torch.Generator) -> Tensor:
    """The next token (B,) from logits (B, V); `pad` is never chosen."""
    logits = logits.float()
    logits[:, pad] = -torch.inf
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    p = (logits / sampling.temperature).softmax(dim=1)
    if sampling.top_p < 1:
        falling, token = p.sort(dim=1, descending=True, stable=True)
        before = (falling.double() * _FINE).long().cumsum(dim=1) - (falling.double() * _FINE).long()
        # A token is kept while those before it sum to less than top_p; the likeliest one always is.
        falling = falling.masked_fill(before >= int(sampling.top_p * _FINE), 0.0)
        p = torch.zeros_like(p).scatter(1, token, falling)
    # The largest p / E with E exponential is a draw from p.
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(dim=1)
