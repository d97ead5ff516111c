"""Sharpening of predicted distributions."""

from __future__ import annotations

from torch import Tensor


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p_k^(1/T) / sum_j p_j^(1/T), T = `temperature`: (B, K) -> (B, K); MixMatch (arXiv:1905.02249), eq. 7.

    Rows are scaled to a maximum of 1 first, so that small temperatures do not underflow.
    """
    scaled = (p / p.amax(dim=1, keepdim=True)) ** (1.0 / temperature)
    return scaled / scaled.sum(dim=1, keepdim=True)
