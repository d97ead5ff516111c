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
from .language_model import CUT_OFF, Tokenizer, fused_attention, has_large_head, join, next_logits, read
from .rollouts import Charge
from .sampling import Sampling, choose

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
        model, tokenizer, device = self.model, self.tokenizer, generator.device
        most, large = int(room.max()), has_large_head(model)
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
        made = torch.full((len(logits), most), tokenizer.pad, device=device)
        rows: Tensor | None = None
        tokens: list[Tensor] = []
        at = 0
        while True:
            charge(0, int((~done).sum()))
            if len(never):
                logits[:, list(never)] = -torch.inf
            token = choose(logits, sampling, tokenizer.pad, generator, rows, len(made)).masked_fill(done, tokenizer.pad)
            tokens.append(token)
            done |= token == tokenizer.stop
            if len(ends):
                done |= torch.isin(token, closing)
            if shorter is not None:
                done |= shorter <= at + len(tokens)
            ended = at + len(tokens) == most or bool(done.all())
            going = (~done).nonzero()[:, 0] if large else done
            if ended or (large and len(going) <= _SHRINK * len(done)):
                made[slice(None) if rows is None else rows, at : at + len(tokens)] = torch.stack(tokens, dim=1)
                at, tokens = at + len(tokens), []
                if ended:
                    return made[:, :at].cpu().numpy()
                rows = going if rows is None else rows[going]
                done, token, position = done[going], token[going], position[going]
                mask = mask[going] if mask is not None else None
                shorter = shorter[going] if shorter is not None else None
                cache.batch_select_indices(going)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = next_logits(model, token[:, None], mask, position + at + len(tokens) - 1, cache)


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
