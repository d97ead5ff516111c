"""Masked tokens, as BERT is trained on them (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100
"""The target of a token that is not predicted; what `cross_entropy` leaves out."""


def mask_tokens(
    ids: Tensor, generator: torch.Generator, mask: int, vocabulary: int, special: Sequence[int], rate: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) -> ids with some of them hidden, and targets (B, T), `IGNORED` where nothing is predicted.

    Each token that is not `special` (padding, [CLS], [SEP], ...) is chosen with probability `rate`; of the chosen ones
    80 % become the token `mask`, 10 % one of the `vocabulary` drawn evenly, and 10 % stay. A special one that is drawn
    becomes `mask` too: as padding, the token's place would be gone. All randomness comes from `generator`, which is on
    the device of `ids`.
    """
    draw = torch.rand(3, *ids.shape, generator=generator, device=ids.device)
    ordinary = torch.ones_like(ids, dtype=torch.bool)
    for token in special:
        ordinary &= ids != token
    chosen = ordinary & (draw[0] < rate)
    targets = ids.masked_fill(~chosen, IGNORED)
    any_token = (draw[2] * vocabulary).long().clamp_max_(vocabulary - 1)
    for token in special:
        any_token = any_token.masked_fill(any_token == token, mask)
    hidden = ids.masked_fill(chosen & (draw[1] < 0.8), mask)
    return torch.where(chosen & (draw[1] >= 0.9), any_token, hidden), targets
