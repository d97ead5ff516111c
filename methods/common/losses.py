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


def confident_cross_entropy(logits: Tensor, target_logits: Tensor, threshold: float) -> Tensor:
    """(1/B) sum_b 1[max_k q_bk >= threshold] CE(logits_b, argmax_k q_bk), q = softmax(target_logits).

    Both arguments are (B, K); returns a scalar. The mean is over all B examples, kept or not; no
    gradient flows into `target_logits`.
    """
    confidence, labels = target_logits.detach().softmax(dim=1).max(dim=1)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * (confidence >= threshold)).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(1/B) sum_b weights_b CE(logits_b, labels_b): (B, K), (B,), (B,) -> scalar; the mean is over all B examples."""
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
