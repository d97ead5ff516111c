"""Generation: responses to prompts, drawn token by token.

`generate` goes from texts to token ids and back. What draws the ids is a `Sampler`, the seam behind which engines of
generation stand: `OwnSampler` runs the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array
from .language_model import fused_attention, has_large_head, next_logits, read
from .rollouts import Charge
from .sampling import Sampling, choose
from .sequences import join
from .tokens import CUT_OFF, Tokenizer

_SHRINK = 0.5
"""Of a large model, what has ended leaves a batch when no more than this share of it goes on."""


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
        with torch.no_grad(), fused_attention(self.model):
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
        model, pad, device = self.model, self.tokenizer.pad, generator.device
        logits, mask, cache = read(model, ids, lengths, pad, device)
        if n > 1:
            cache.batch_repeat_interleave(n)
            logits = logits.repeat_interleave(n, dim=0)
            mask = mask.repeat_interleave(n, dim=0) if mask is not None else None
        first, most = (torch.from_numpy(each).to(device).repeat_interleave(n) for each in (lengths, room))
        rows = _Rows(cache, mask, first, most, torch.tensor([self.tokenizer.stop, *ends], device=device), pad)
        while True:
            charge(0, int((~rows.done).sum()))
            if len(never):
                logits[:, list(never)] = -torch.inf
            rows.take(choose(logits, sampling, pad, generator, rows.at, len(rows.made)))
            if rows.ended:
                return rows.made[:, : rows.drawn].cpu().numpy()
            if has_large_head(model):
                rows.shrink()
            logits = next_logits(model, *rows.next(), rows.cache)


class _Rows:
    """The responses of a batch while they are drawn: what each has, and what the model needs to go on with it."""

    def __init__(self, cache: Any, mask: Tensor | None, first: Tensor, most: Tensor, closing: Tensor, pad: int) -> None:
        """`first`, `most` (B,): the places of first tokens, and how many fit; `closing` tokens end a response."""
        self.cache, self._mask, self._closing, self._pad = cache, mask, closing, pad
        self._place, self._longest = first, int(most.max())
        # Where all may be equally long, the number of steps alone ends them.
        self._most = most if bool((most < self._longest).any()) else None
        self.made = torch.full((len(first), self._longest), pad, device=first.device)
        """The tokens (B, T) of all, those that have left included."""
        self.drawn = 0
        """How many tokens the longest has."""
        self.done = torch.zeros(len(first), dtype=torch.bool, device=first.device)
        """Which of those that are still run have ended."""
        self.at: Tensor | None = None
        """Which rows of all are still run; None: all of them."""

    def take(self, token: Tensor) -> None:
        """Add the token (R,) drawn for each row that is run; those that have ended get padding."""
        token = token.masked_fill(self.done, self._pad)
        self.made[slice(None) if self.at is None else self.at, self.drawn] = token
        self.drawn += 1
        self.done |= torch.isin(token, self._closing)
        if self._most is not None:
            self.done |= self._most <= self.drawn

    @property
    def ended(self) -> bool:
        return self.drawn == self._longest or bool(self.done.all())

    def shrink(self) -> None:
        """Run no longer what has ended, where enough has."""
        going = (~self.done).nonzero()[:, 0]
        if len(going) > _SHRINK * len(self.done):
            return
        self.at = going if self.at is None else self.at[going]
        self.done, self._place = self.done[going], self._place[going]
        self._mask = self._mask[going] if self._mask is not None else None
        self._most = self._most[going] if self._most is not None else None
        self.cache.batch_select_indices(going)

    def next(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The last tokens (R, 1) of what is run, the attention mask, and the places (R, 1) of these tokens."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        token = self.made[slice(None) if self.at is None else self.at, self.drawn - 1]
        return token[:, None], self._mask, (self._place + self.drawn - 1)[:, None]


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
