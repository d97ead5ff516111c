"""What a policy can be trained on: token sequences with a loss, for each way of learning from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bundle import Array
from .dropout import residual_dropout
from .policy_examples import Rollout
from .policy_losses import distillation_loss, dpo_loss, reinforce_loss, sft_loss
from .sequences import Sequences


@dataclass(frozen=True)
class Objective:
    """`loss(indices)` of a batch of N items; an item holds `per_item` sequences, of `tokens` (N,) in all.

    Batches are made by the lengths of `sequences` (N,), one an item. Each sequence takes `passes` passes, whose tokens
    are among `tokens`.
    """

    sequences: Sequences
    tokens: Array
    loss: Callable[[Array], Tensor]
    per_item: int = 1
    passes: int = 1


def fine_tuning(model: nn.Module, sequences: Sequences, weight: Tensor) -> Objective:
    """Likelihood of the responses, of which `weight` (N,) weighs the tokens."""
    device = weight.device
    tokens = torch.from_numpy(sequences.scored()).to(device)

    def loss(chosen: Array) -> Tensor:
        at = torch.from_numpy(chosen).to(device)
        logprobs = sequences.logprobs(model, chosen, device)
        return sft_loss(logprobs, tokens[at], weight[at])

    return Objective(sequences, sequences.lengths, loss)


def preference(
    model: nn.Module, both: Sequences, before: Tensor, label: Tensor, weight: Tensor, beta: float
) -> Objective:
    """DPO on N pairs: `both` (2 N) holds the chosen ones, then the rejected ones; `before` (2 N,) is the reference's
    log-probability of each, `label` and `weight` (N,) are those of `dpo_loss`."""
    device, n = before.device, len(label)
    lengths = both.lengths.reshape(2, n)

    def loss(at: Array) -> Tensor:
        rows = np.concatenate([at, at + n])
        index = torch.from_numpy(rows).to(device)
        gained = both.logprobs(model, rows, device) - before[index]
        better, worse = gained.split(len(at))  # type: ignore[no-untyped-call]
        first = index[: len(at)]
        return dpo_loss(better, worse, label[first], weight[first], beta)

    longest = Sequences(both.ids[:n], both.starts[:n], lengths.max(axis=0))
    return Objective(longest, lengths.sum(axis=0), loss, per_item=2)


def distillation(
    model: nn.Module, teacher: Sequences, student: Sequences, stop: int, alpha: float, weight: float,
    device: torch.device,
) -> Objective:  # fmt: skip
    """`distillation_loss` of the policy with itself: the same responses after prompts with and without a reference."""

    def loss(chosen: Array) -> Tensor:
        taught, tokens = teacher.logits(model, chosen, device)
        own, _ = student.logits(model, chosen, device)
        return distillation_loss(taught, own, tokens, tokens != stop, alpha, weight)

    longest = teacher if teacher.lengths.sum() >= student.lengths.sum() else student
    return Objective(longest, teacher.lengths + student.lengths, loss, per_item=2)


def voted(model: nn.Module, sequences: Sequences, passes: int, dropout: float, generator: torch.Generator) -> Objective:
    """Likelihood of the responses under the mean of the logits of `passes` passes with dropout."""

    def loss(chosen: Array) -> Tensor:
        with residual_dropout(model, dropout, generator):
            found = [sequences.logits(model, chosen, generator.device) for _ in range(passes)]
        return F.cross_entropy(torch.stack([logits for logits, _ in found]).mean(dim=0), found[0][1])

    return Objective(sequences, passes * sequences.lengths, loss, passes=passes)


def reinforcement(
    model: nn.Module, sequences: Sequences, rollouts: Sequence[Rollout], paid: Tensor, before: Tensor
) -> Objective:
    """REINFORCE on samples that are paid `paid` (N,); `before` (N,) is the reference's log-probability of each."""
    device = paid.device
    kl = torch.tensor([one.kl for one in rollouts], dtype=torch.float32, device=device)
    group = torch.tensor([one.group for one in rollouts], device=device)

    def loss(chosen: Array) -> Tensor:
        at = torch.from_numpy(chosen).to(device)
        logprobs = sequences.logprobs(model, chosen, device)
        return reinforce_loss(logprobs, paid[at], kl[at], before[at], group[at])

    return Objective(sequences, sequences.lengths, loss)
