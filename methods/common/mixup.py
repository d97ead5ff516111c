"""MixUp of examples and of their targets."""

from __future__ import annotations

import torch
from torch import Tensor


def mixing_shares(n: int, alpha: float, generator: torch.Generator) -> Tensor:
    """`n` shares max(l, 1 - l), l ~ Beta(alpha, alpha): (n,) in [1/2, 1], on the generator's device.

    The larger share, so that a mixed example stays nearer to its first part (MixMatch, arXiv:1905.02249, eq. 8 and 9).
    """
    # The class torch.distributions.Beta takes no generator; the ratio of two gamma variables is what it draws.
    gamma = torch._standard_gamma(torch.full((2, n), alpha, device=generator.device), generator=generator)
    share = gamma[0] / gamma.sum(dim=0)
    return torch.maximum(share, 1.0 - share)


def mixup(x: Tensor, order: Tensor, shares: Tensor) -> Tensor:
    """shares_b x_b + (1 - shares_b) x_order[b]: (B, ...), (B,), (B,) -> (B, ...) (MixUp, arXiv:1710.09412)."""
    share = shares.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    return x[order].lerp(x, share)
