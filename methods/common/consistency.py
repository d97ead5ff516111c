"""Consistency losses between a student's logits and those of a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """-sum_k q_k log p_k with p = softmax(logits), q = softmax(target_logits): (B, K), (B, K) -> (B,), in nats.

    No gradient flows into `target_logits`.
    """
    return -(target_logits.detach().softmax(dim=1) * F.log_softmax(logits, dim=1)).sum(dim=1)


def symmetric_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """-(1/2) sum_k q_k log p_k - (1/2) sum_k p_k log q_k: (B, K), (B, K) -> (B,), in nats.

    p = softmax(logits), q = softmax(target_logits). In a mean teacher: RMT (arXiv:2211.13081), after Wang
    et al. 2019 (arXiv:1908.06112). No gradient flows into `target_logits`; both halves have one in `logits`.
    """
    log_p = F.log_softmax(logits, dim=1)
    log_q = F.log_softmax(target_logits.detach(), dim=1)
    return -0.5 * (log_q.exp() * log_p + log_p.exp() * log_q).sum(dim=1)
