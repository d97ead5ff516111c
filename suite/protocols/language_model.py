"""Batched passes and scoring of a causal language model of `transformers`: functions without state.

Sequences are sorted by length, so that little is padded. A prompt is run once for all that follows it, whose keys and
values start from its own. What is generated stands in `generation.py`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bundle import Array
from .tokens import Tokenizer

_SHARED = 16
"""A beginning that all prompts share, such as that of a chat template, is run once where it has so many tokens."""
LARGE = 4096
"""Of a vocabulary from here on, logits are computed at those places alone where they are asked for."""


def read(
    model: nn.Module, ids: Array, lengths: Array, pad: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Any]:
    """Run the prompts ids (B, L), padded on the left: logits (B, V) after each, attention mask, keys and values.

    What all of them begin with is run once, where that is worth it.
    """
    cache = _new_cache()
    shared = shared_beginning(ids, lengths)
    if shared:
        _run(model, torch.from_numpy(ids[:1, :shared]).to(device), cache)
        cache.batch_repeat_interleave(len(ids))
    rest = lengths - shared
    longest = int(rest.max())
    column = np.arange(longest) - (longest - rest)[:, None]
    prompt = np.where(column >= 0, np.take_along_axis(ids, np.maximum(column, 0) + shared, axis=1), pad)
    # Without padding the causal mask alone is right, and faster.
    mask = None
    if not bool((rest == longest).all()):
        inside = np.concatenate([np.ones((len(ids), shared), bool), column >= 0], axis=1)
        mask = torch.from_numpy(inside).to(device)
    positions = torch.from_numpy(np.maximum(column, 0) + shared).to(device)
    return next_logits(model, torch.from_numpy(prompt).to(device), mask, positions, cache), mask, cache


def next_logits(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
    """Logits (B, V) after the last of ids (B, T); the keys and values of `cache` come before, and grow."""
    return _run(model, ids, cache, mask, positions).logits[:, -1]  # type: ignore[no-any-return]


def shared_beginning(ids: Array, lengths: Array) -> int:
    """With how many equal tokens all of ids (N, L) begin, one of each left out; 0 where it is not worth sharing."""
    if len(ids) < 2:
        return 0
    most = int(lengths.min()) - 1
    unlike = (ids[:, :most] != ids[:1, :most]).any(axis=0)
    shared = int(unlike.argmax()) if unlike.any() else most
    return shared if shared >= _SHARED else 0


def alike(ids: Array, starts: Array) -> list[tuple[Array, int]]:
    """Rows of ids (N, L) that begin alike, and with how many tokens before `starts` (N,); none for over two kinds."""
    begins = ids[:, : min(_SHARED, ids.shape[1])]
    kind = np.unique(begins, axis=0, return_inverse=True)[1].reshape(-1)
    if kind.max(initial=0) > 1:
        return []
    kinds = [np.flatnonzero(kind == one) for one in range(kind.max(initial=0) + 1)]
    return [(rows, shared_beginning(ids[rows], starts[rows])) for rows in kinds]


def likeliest(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    rows: int,
    device: torch.device,
) -> Array:
    """The number (Q,) of the option with the largest log-probability after each of Q prompts, summed over its tokens.

    No stop symbol is scored. A prompt is run once for all of its options, at most `rows` of which are scored at a time.
    """
    ids, lengths = tokenizer.encode(prompts)
    counts = np.array([len(group) for group in options])
    firsts = np.cumsum(counts) - counts
    flat, sizes = tokenizer.encode([text for group in options for text in group])
    scores = np.empty(len(flat))
    order, per = np.argsort(lengths, kind="stable"), max(1, rows // int(counts.max(initial=1)))
    with torch.no_grad(), fused_attention(model):
        for start in range(0, len(order), per):
            chosen = order[start : start + per]
            rows_of = np.concatenate([np.arange(firsts[at], firsts[at] + counts[at]) for at in chosen])
            group = torch.from_numpy(np.repeat(np.arange(len(chosen)), counts[chosen])).to(device)
            logits, mask, cache = read(model, ids[chosen], lengths[chosen], tokenizer.pad, device)
            cache.batch_select_indices(group)
            tokens = torch.from_numpy(flat[rows_of, : int(sizes[rows_of].max())]).to(device)
            inside = torch.arange(tokens.shape[1], device=device) < torch.from_numpy(sizes[rows_of]).to(device)[:, None]
            logits = logits[group, None].float()
            if tokens.shape[1] > 1:
                before = torch.from_numpy(lengths[chosen]).to(device)[group, None]
                positions = before + torch.arange(tokens.shape[1] - 1, device=device)
                if mask is not None:
                    mask = torch.cat([mask[group], torch.ones_like(inside[:, 1:])], dim=1)
                more = _run(model, tokens[:, :-1], cache, mask, positions, tokens.shape[1] - 1).logits
                logits = torch.cat([logits, more.float()], dim=1)
            nll = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
            scores[rows_of] = -(nll * inside).sum(dim=1).double().cpu().numpy()
    return np.array([scores[at : at + n].argmax() for at, n in zip(firsts, counts, strict=True)], np.int64)


def response_logprobs(model: nn.Module, ids: Tensor, response: Tensor, shared: int = 0, first: int = 1) -> Tensor:
    """Log-probabilities (B,) of the response tokens, summed; ids (B, T), response (B, T) says which they are.

    Padding comes last, where a causal model cannot look. The first `shared` tokens, equal in all rows and of prompts,
    are run once, their gradient included. Nothing before the token `first` belongs to a response.
    """
    logits, first = _logits(model, ids, shared, first)
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, first:].flatten(), reduction="none").view_as(ids[:, first:])
    return -(nll * response[:, first:]).sum(dim=1)


def response_logits(
    model: nn.Module, ids: Tensor, response: Tensor, shared: int = 0, first: int = 1
) -> tuple[Tensor, Tensor]:
    """Logits (R, V) at the R places of response tokens, row by row, and the tokens (R,); arguments as above."""
    logits, first = _logits(model, ids, shared, first)
    inside = response[:, first:]
    return logits[inside], ids[:, first:][inside]


def _logits(model: nn.Module, ids: Tensor, shared: int, first: int) -> tuple[Tensor, int]:
    """Logits (B, T - first, V) of the tokens from `first` on; it is moved to where they begin."""
    cache: Any = None
    if shared:
        cache = _new_cache()
        _run(model, ids[:1, :shared], cache)
        cache.batch_repeat_interleave(len(ids))
    first = first if has_large_head(model) else shared + 1
    kept = ids.shape[1] - first
    return _run(model, ids[:, shared:-1], cache, kept=kept).logits.float(), first


def last_logits(model: nn.Module, ids: Array, lengths: Array, pad: int, device: torch.device) -> Tensor:
    """Logits (B, V) after the last token of each sequence: of ids (B, L) the first `lengths` (B,) belong to it."""
    longest = int(lengths.max())
    column = np.arange(longest) - (longest - lengths)[:, None]
    left = np.where(column >= 0, np.take_along_axis(ids, np.maximum(column, 0), axis=1), pad)
    mask = None if bool((lengths == longest).all()) else torch.from_numpy(column >= 0).to(device)
    positions = torch.from_numpy(np.maximum(column, 0)).to(device)
    return _run(model, torch.from_numpy(left).to(device), None, mask, positions).logits[:, -1].float()  # type: ignore[no-any-return]


def _new_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def is_large(vocabulary: int) -> bool:
    """Whether a vocabulary is so large that what is done for each of its tokens tells."""
    return vocabulary >= LARGE


def has_large_head(model: nn.Module) -> bool:
    """Whether the logits of `model` are those of a large vocabulary."""
    config: Any = getattr(model, "config", None)
    return is_large(int(getattr(config, "vocab_size", 0)))


@contextlib.contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Passes without gradient by torch's fused attention, where `model` is trained without it.

    Step by step after 230 tokens, 256 sequences at a time, it is four times as fast on a CPU, after 60 nearly twice: it
    copies no keys and values for queries that share them.
    """
    changed: Any = model if getattr(getattr(model, "config", None), "_attn_implementation", "") == "eager" else None
    if changed is not None:
        changed.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if changed is not None:
            changed.set_attn_implementation("eager")


def _run(
    model: nn.Module,
    ids: Tensor,
    cache: Any = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    kept: int = 1,
) -> Any:
    """The output of `model` for ids (B, T) after the keys and values of `cache`, which grow; without a cache, alone.

    Of a large vocabulary the logits are those of the last `kept` tokens.
    """
    more: dict[str, Any] = {}
    if has_large_head(model):
        # By index, which copies the states: a slice of them would have the weights of the head copied for every row.
        more["logits_to_keep"] = torch.arange(ids.shape[1] - kept, ids.shape[1], device=ids.device)
    if cache is not None:
        # Later versions of transformers call it `cache`.
        more["cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"] = cache
    if mask is not None:
        more["attention_mask"] = mask.long()
    if positions is not None:
        more["position_ids"] = positions
    return model(input_ids=ids, use_cache=cache is not None, **more)
