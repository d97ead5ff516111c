"""Putting single weights back to where they came from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def restore_randomly(
    weights: Sequence[Tensor], source: Sequence[Tensor], probability: float, generator: torch.Generator
) -> None:
    """Set each single weight to its source value with `probability`, in place (CoTTA, arXiv:2203.13591, eq. 8).

    One draw from `generator` on its own device covers all weights, in their order.
    """
    if probability == 0.0:
        return
    total = sum(weight.numel() for weight in weights)
    drawn = torch.rand(total, generator=generator, device=weights[0].device, dtype=weights[0].dtype)
    restore_where(weights, source, (drawn < probability).to(weights[0].dtype))


@torch.no_grad()
def restore_where(weights: Sequence[Tensor], source: Sequence[Tensor], mask: Tensor) -> None:
    """Set each single weight to its source value where `mask` is 1, in place.

    `mask` (P,) is 0 or 1, in the type of the weights, over all of them flattened and joined in their order.
    """
    parts = torch.split(mask, [weight.numel() for weight in weights])
    # With weights of 0 and 1 the interpolation is exact on both sides.
    masks = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    torch._foreach_lerp_(list(weights), list(source), masks)
