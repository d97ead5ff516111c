"""Batched passes, scoring and losses of a causal language model of `transformers`: functions without state.

Sequences are sorted by length, so that little is padded. A prompt is run once for all that follows it, whose keys and
values start from its own. What is generated stands in `generation.py`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
_SHARED = 16
"""A beginning that all prompts share, such as that of a chat template, is run once where it has so many tokens."""
LARGE = 4096
"""Of a vocabulary from here on, logits are computed at those places alone where they are asked for."""


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


def read(
    model: nn.Module, ids: Array, lengths: Array, pad: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Any]:
    """Run the prompts ids (B, L), padded on the left: logits (B, V) after each, attention mask, keys and values.

    What all of them begin with is run once, where that is worth it.
    """
    cache = _new_cache()
    shared = _shared_beginning(ids, lengths)
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


def _shared_beginning(ids: Array, lengths: Array) -> int:
    """With how many equal tokens all of ids (N, L) begin, one of each left out; 0 where it is not worth sharing."""
    if len(ids) < 2:
        return 0
    most = int(lengths.min()) - 1
    unlike = (ids[:, :most] != ids[:1, :most]).any(axis=0)
    shared = int(unlike.argmax()) if unlike.any() else most
    return shared if shared >= _SHARED else 0


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
        kinds = self._kinds(chosen) if has_large_head(model) and not self.shared else []
        if not any(shared for _, shared in kinds):
            return self._logprobs(model, chosen, device, self.shared)
        found = torch.cat([self._logprobs(model, chosen[rows], device, shared) for rows, shared in kinds])
        order = np.argsort(np.concatenate([rows for rows, _ in kinds]))
        return found[torch.from_numpy(order).to(device)]

    def _logprobs(self, model: nn.Module, chosen: Array, device: torch.device, shared: int) -> Tensor:
        first = int(self.starts[chosen].min())
        return response_logprobs(model, *self.batch(chosen, device), shared=shared, first=first)

    def _kinds(self, chosen: Array) -> list[tuple[Array, int]]:
        """Places in `chosen` of the sequences that begin alike, and with how many tokens; none for over two kinds."""
        begins = self.ids[chosen, : min(_SHARED, self.ids.shape[1])]
        kind = np.unique(begins, axis=0, return_inverse=True)[1].reshape(-1)
        if kind.max(initial=0) > 1:
            return []
        kinds = [np.flatnonzero(kind == one) for one in range(kind.max(initial=0) + 1)]
        return [(rows, _shared_beginning(self.ids[chosen[rows]], self.starts[chosen[rows]])) for rows in kinds]

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
    return Sequences(ids, starts, lengths, _shared_beginning(ids, starts), tuple(observed))


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


def sft_loss(logprobs: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """The mean negative log-probability a response token, examples weighted: logprobs, tokens, weights (B,)."""
    return -(weights * logprobs).sum() / (weights * tokens).sum()


def distillation_loss(
    teacher: Tensor, student: Tensor, tokens: Tensor, inner: Tensor, alpha: float, weight: float
) -> Tensor:
    """Self-distillation of Self-J (arXiv:2409.00935): CE(teacher) + alpha CE(student) + weight KL(teacher || student).

    `teacher`, `student` (R, V): logits at the places of the same R response `tokens` (R,), after prompts with and
    without a reference. All three are means over places, the KL over those that are `inner` (R,), no stop symbols; no
    gradient flows through the teacher in it.
    """
    fixed = teacher[inner].detach().log_softmax(dim=1)
    kl = F.kl_div(student[inner].log_softmax(dim=1), fixed, reduction="batchmean", log_target=True)
    return F.cross_entropy(teacher, tokens) + alpha * F.cross_entropy(student, tokens) + weight * kl


def reinforce_loss(logprobs: Tensor, rewards: Tensor, kl: Tensor, reference: Tensor, group: Tensor) -> Tensor:
    """REINFORCE with a baseline: -mean A log pi, A = R - mean of R in the group, R = r - kl (log pi - log pi_ref).

    `logprobs`, `rewards`, `kl`, `reference` (B,), `group` int64 (B,); gradients flow through `logprobs` in front of A
    alone.
    """
    paid = rewards - kl * (logprobs.detach() - reference)
    together = (group[:, None] == group).to(paid)
    return -((paid - together @ paid / together.sum(dim=1)) * logprobs).mean()


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
