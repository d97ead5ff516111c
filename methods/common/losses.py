"""Losses on logits that several methods share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def entropy(logits: Tensor) -> Tensor:
    """H(p) = -sum_k p_k log p_k of p = softmax(logits): (B, K) -> (B,), in nats.

    Taken from log p alone, so that it and its gradient stay finite where p_k is 0 in floating point.
    """
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(1/B) sum_b weights_b CE(logits_b, labels_b): (B, K), (B,), (B,) -> scalar; the mean is over all B examples."""
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
