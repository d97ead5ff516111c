"""The next tokens from logits: greedy, or drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .language_model import is_large

_FINE = 1 << 40
"""Steps into which probabilities are cut: sums of integers are exact in any order, on any device."""
_BLOCK = 256
"""A token of a large vocabulary is drawn in two steps: a block of so many, and one in it."""
_HEAD = 256
"""Among so many of the likeliest tokens `top_p` is looked for first: a whole sort costs more than the model's pass."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_p` keeps the likeliest tokens whose probabilities sum to it."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("a temperature is at least 0, top_p lies in (0, 1]")


def choose(
    logits: Tensor, sampling: Sampling, pad: int, generator: torch.Generator, rows: Tensor | None = None, of: int = 0
) -> Tensor:
    """The next token (B,) from logits (B, V), which are changed; `pad` is never chosen.

    Of a large vocabulary `logits` may be those of `rows` (B,) among `of` ones alone: each row's token is what it would
    be among all of them.
    """
    logits = logits.float()
    logits[:, pad] = -torch.inf
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    p = (logits / sampling.temperature).softmax(dim=1)
    if is_large(p.shape[1]):
        u = torch.rand(of or len(p), 2, dtype=torch.float64, generator=generator, device=p.device)
        return _drawn(p, sampling.top_p, u if rows is None else u[rows])
    if sampling.top_p < 1:
        falling, token = p.sort(dim=1, descending=True, stable=True)
        falling = falling.masked_fill(_before(falling) >= int(sampling.top_p * _FINE), 0.0)
        p = torch.zeros_like(p).scatter(1, token, falling)
    # The largest p / E with E exponential is a draw from p.
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(dim=1)


def _drawn(p: Tensor, top_p: float, u: Tensor) -> Tensor:
    """Tokens (B,) by probabilities p (B, V), one by the two uniform numbers u (B, 2) of each row."""
    if top_p < 1:
        return _from_nucleus(p, top_p, u[:, 0], min(_HEAD, p.shape[1]))
    blocks = F.pad(p, (0, -p.shape[1] % _BLOCK)).view(len(p), -1, _BLOCK)
    block = _by_inversion(blocks.sum(dim=2), u[:, 0])
    return block * _BLOCK + _by_inversion(blocks[torch.arange(len(p), device=p.device), block], u[:, 1])


def _from_nucleus(p: Tensor, top_p: float, u: Tensor, head: int) -> Tensor:
    """The same by u (B,) among the likeliest tokens whose probabilities sum to `top_p`, sought in the first `head`."""
    falling, token = p.topk(head, dim=1)
    kept = falling.masked_fill(_before(falling) >= int(top_p * _FINE), 0.0)
    chosen = token.gather(1, _by_inversion(kept, u)[:, None])[:, 0]
    more = kept[:, -1] > 0
    if head < p.shape[1] and bool(more.any()):
        chosen[more] = _from_nucleus(p[more], top_p, u[more], p.shape[1])
    return chosen


def _before(falling: Tensor) -> Tensor:
    """What the tokens before each of `falling` (B, N) sum to, in steps: a token is kept while it is less than `top_p`,
    the likeliest one always."""
    steps = (falling.double() * _FINE).long()
    return steps.cumsum(dim=1) - steps


def _by_inversion(weights: Tensor, u: Tensor) -> Tensor:
    """Indices (B,) drawn by weights (B, N), not all 0, with u (B,) uniform in [0, 1): none whose weight is 0."""
    shares = weights.double() / weights.double().sum(dim=1, keepdim=True)
    total = (shares * _FINE).long().cumsum(dim=1)
    aim = (u * total[:, -1]).long().minimum(total[:, -1] - 1)
    return torch.searchsorted(total, aim[:, None], right=True)[:, 0]
