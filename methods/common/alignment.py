"""Distribution alignment: predictions rescaled so that their mean over time is a wanted distribution."""

from __future__ import annotations

from torch import Tensor

_EPSILON = 1e-6


def align(p: Tensor, wanted: Tensor, mean: Tensor) -> Tensor:
    """p (B, K) times wanted (K,) / mean (K,), each row scaled back to sum 1 (ReMixMatch, arXiv:1911.09785)."""
    scaled = p * ((wanted + _EPSILON) / (mean + _EPSILON))
    return scaled / scaled.sum(dim=1, keepdim=True)
