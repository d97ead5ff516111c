"""Batched generation, scoring and losses of a causal language model of `transformers`: functions without state.

Sequences are sorted by length, so that little is padded. A prompt is run once for all of its samples, whose keys and
values start from its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bundle import Array

CUT_OFF = "…"
"""Ends the text of a response that was cut off before its stop symbol, so that no parser takes it for a whole one."""
_WINDOW, _SIMILAR = 8, 8
"""In training, examples are sorted by length among so many batches, and lengths within so many tokens count as equal:
sorting them all would put like problems together."""
_FINE = 1 << 40
"""Steps into which probabilities are cut for `top_p`: sums of integers are exact in any order, on any device."""


class Tokenizer(Protocol):
    """Text to token ids and back. `pad` fills batches and is never generated, `stop` ends a response."""

    pad: int
    stop: int

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Ids int64 (N, L), padded on the right, and lengths int64 (N,); raises `ValueError` on other symbols."""

    def decode(self, ids: Array) -> list[str]:
        """The texts of ids (N, T) before their first stop; one without a stop ends in `CUT_OFF`."""


class CharTokenizer:
    """A token a character of `vocabulary` (ASCII): the first one pads and the second one stops."""

    pad = 0
    stop = 1

    def __init__(self, vocabulary: str) -> None:
        self._characters = np.frombuffer(vocabulary.encode("ascii"), np.uint8)
        self._ids = np.full(256, -1, np.int64)
        self._ids[self._characters] = np.arange(len(self._characters))
        self._ids[self._characters[: self.stop + 1]] = -1

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        lengths = np.array([len(text) for text in texts], np.int64)
        ids = np.full((len(texts), int(lengths.max(initial=0))), self.pad, np.int64)
        flat = self._ids[np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)]
        if (flat < 0).any():
            strange = next(text for text in texts if (self._ids[list(text.encode("latin-1", "replace"))] < 0).any())
            raise ValueError(f"{strange!r} has characters outside of the model's vocabulary")
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = flat
        return ids, lengths

    def decode(self, ids: Array) -> list[str]:
        stops = ids == self.stop
        ends = np.where(stops.any(axis=1), stops.argmax(axis=1), ids.shape[1])
        characters = np.where(np.arange(ids.shape[1]) < ends[:, None], self._characters[ids], 0)
        rows = np.ascontiguousarray(characters).view(f"S{ids.shape[1]}")[:, 0].tolist()
        whole = (ends < ids.shape[1]).tolist()
        return [row.decode("ascii") + ("" if stop else CUT_OFF) for row, stop in zip(rows, whole, strict=True)]


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_p` keeps the likeliest tokens whose probabilities sum to it."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("a temperature is at least 0, top_p lies in (0, 1]")


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n: int,
    sampling: Sampling,
    *,
    max_new: int,
    rows: int,
    generator: torch.Generator,
    charge: Callable[[int, int], None] = lambda sequences, tokens: None,
) -> list[list[str]]:
    """`n` responses to every prompt, of at most `max_new` tokens each.

    `charge(sequences, tokens)` is told before the work: the sequences of a batch, then the tokens of every step, of
    which sequences that have stopped take none.
    """
    if not len(prompts):
        return []
    ids, lengths = tokenizer.encode(prompts)
    order = np.argsort(lengths, kind="stable")
    found: list[list[str]] = [[] for _ in prompts]
    per = max(1, rows // n)
    with torch.no_grad():
        for start in range(0, len(order), per):
            chosen = order[start : start + per]
            charge(len(chosen) * n, 0)
            made = _generate_batch(
                model, tokenizer, ids[chosen], lengths[chosen], n, sampling, max_new, generator, charge
            )
            texts = tokenizer.decode(made)
            for at, prompt in enumerate(chosen.tolist()):
                found[prompt] = texts[at * n : (at + 1) * n]
    return found


def _generate_batch(
    model: nn.Module,
    tokenizer: Tokenizer,
    ids: Array,
    lengths: Array,
    n: int,
    sampling: Sampling,
    max_new: int,
    generator: torch.Generator,
    charge: Callable[[int, int], None],
) -> Array:
    """Token ids (B n, T), T at most `max_new`, the samples of a prompt beside each other."""
    device = generator.device
    longest = int(lengths.max())
    column = np.arange(longest) - (longest - lengths)[:, None]
    prompt = np.where(column >= 0, np.take_along_axis(ids, np.maximum(column, 0), axis=1), tokenizer.pad)
    inside = torch.from_numpy(column >= 0).to(device)
    # Without padding the causal mask alone is right, and faster.
    mask = None if bool((lengths == longest).all()) else inside
    positions = torch.from_numpy(np.maximum(column, 0)).to(device)
    cache = _new_cache()
    logits = _next_logits(model, torch.from_numpy(prompt).to(device), mask, positions, cache)
    if n > 1:
        cache.batch_repeat_interleave(n)
        logits = logits.repeat_interleave(n, dim=0)
        mask = mask.repeat_interleave(n, dim=0) if mask is not None else None
    position = torch.from_numpy(lengths).to(device).repeat_interleave(n)[:, None]
    done = torch.zeros(len(logits), dtype=torch.bool, device=device)
    tokens: list[Tensor] = []
    while True:
        charge(0, int((~done).sum()))
        token = _choose(logits, sampling, tokenizer.pad, generator).masked_fill(done, tokenizer.pad)
        tokens.append(token)
        done |= token == tokenizer.stop
        if len(tokens) == max_new or bool(done.all()):
            return torch.stack(tokens, dim=1).cpu().numpy()
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = _next_logits(model, token[:, None], mask, position + len(tokens) - 1, cache)


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


@dataclass(frozen=True)
class Sequences:
    """Prompts with responses and stop symbols: `ids` int64 (N, L), where responses begin, and lengths, int64 (N,)."""

    ids: Array
    starts: Array
    lengths: Array

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, chosen: Array, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids (B, T) and which of them belong to responses (B, T), cut to the longest of the batch."""
        longest = int(self.lengths[chosen].max())
        column = np.arange(longest)
        response = (column >= self.starts[chosen, None]) & (column < self.lengths[chosen, None])
        return torch.from_numpy(self.ids[chosen, :longest]).to(device), torch.from_numpy(response).to(device)

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


def join(tokenizer: Tokenizer, prompts: Sequence[str], responses: Sequence[str]) -> Sequences:
    """The token sequences of prompts with their responses; raises `ValueError` on a response that was cut off."""
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts, but {len(responses)} responses")
    if any(response.endswith(CUT_OFF) for response in responses):
        raise ValueError("a response that was cut off cannot be scored or trained on: leave out what does not parse")
    first, starts = tokenizer.encode(prompts)
    second, more = tokenizer.encode(responses)
    lengths = starts + more + 1
    ids = np.full((len(prompts), int(lengths.max(initial=1))), tokenizer.pad, np.int64)
    column = np.arange(ids.shape[1])
    ids[column < starts[:, None]] = first[np.arange(first.shape[1]) < starts[:, None]]
    ids[(column >= starts[:, None]) & (column < lengths[:, None] - 1)] = second[
        np.arange(second.shape[1]) < more[:, None]
    ]
    ids[np.arange(len(ids)), lengths - 1] = tokenizer.stop
    return Sequences(ids, starts, lengths)


def response_logprobs(model: nn.Module, ids: Tensor, response: Tensor) -> Tensor:
    """Log-probabilities (B,) of the response tokens, summed; ids (B, T), response (B, T) says which they are.

    Padding comes last, where a causal model cannot look.
    """
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
    return -(nll * response[:, 1:]).sum(dim=1)


def sft_loss(logprobs: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """The mean negative log-probability a response token, examples weighted: logprobs, tokens, weights (B,)."""
    return -(weights * logprobs).sum() / (weights * tokens).sum()


def dpo_loss(chosen: Tensor, rejected: Tensor, labels: Tensor, weights: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al., 2023, arXiv:2305.18290, eq. 7) with soft labels, as in CREAM (arXiv:2410.12735).

    `chosen`, `rejected` (B,): log pi - log pi_ref of the two responses; `labels` (B,): the probability C that `chosen`
    is the better one. Mean over the batch, by `weights` (B,), of
    -C log sigmoid(beta (chosen - rejected)) - (1 - C) log sigmoid(beta (rejected - chosen)).
    """
    margin = beta * (chosen - rejected)
    losses = -labels * F.logsigmoid(margin) - (1.0 - labels) * F.logsigmoid(-margin)
    return (weights * losses).sum() / weights.sum()


def _new_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _next_logits(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
    """Logits (B, V) after the last of ids (B, T); the keys and values of `cache` come before, and grow."""
    # Later versions of transformers call it `cache`.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(
        input_ids=ids,
        attention_mask=mask.long() if mask is not None else None,
        position_ids=positions,
        use_cache=True,
        **{name: cache},
    )
    return output.logits[:, -1]  # type: ignore[no-any-return]
