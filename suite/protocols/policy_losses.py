"""Losses of policies from log-probabilities and logits: functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    # Autocast would add up rewards in bf16, and what is left of the differences from their mean is small.
    with torch.autocast(paid.device.type, enabled=False):
        baseline = together @ paid / together.sum(dim=1)
    return -((paid - baseline) * logprobs).mean()


def dpo_loss(chosen: Tensor, rejected: Tensor, labels: Tensor, weights: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al., 2023, arXiv:2305.18290, eq. 7) with soft labels, as in CREAM (arXiv:2410.12735).

    `chosen`, `rejected` (B,): log pi - log pi_ref of the two responses; `labels` (B,): the probability C that `chosen`
    is the better one. Mean over the batch, by `weights` (B,), of
    -C log sigmoid(beta (chosen - rejected)) - (1 - C) log sigmoid(beta (rejected - chosen)).
    """
    margin = beta * (chosen - rejected)
    losses = -labels * F.logsigmoid(margin) - (1.0 - labels) * F.logsigmoid(-margin)
    return (weights * losses).sum() / weights.sum()
