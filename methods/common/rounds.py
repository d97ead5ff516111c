"""Rounds of self-training: a teacher, then students of the labels that the model before them gave to the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_method import AdaptationMethod
    from ...suite.protocols.adaptation_view import View


class InRounds(Protocol):
    """What `train_in_rounds` keeps in a method, so that a killed run goes on in the middle of its round."""

    round: int
    labelled_in: int


def train_in_rounds(
    state: InRounds, method: AdaptationMethod, rounds: int, teacher: float, label: Callable[[], None]
) -> None:
    """Train without labels of its own for the share `teacher` of the budget, then `rounds` equal shares of the rest.

    `label` is called once before each round. Every share has an optimiser and a schedule of its own. With 0 rounds the
    whole budget is the teacher's. `state` is the method itself.
    """
    view = method.view
    while state.round <= rounds:
        if state.labelled_in < state.round:
            with view.meter.running():
                label()
            state.labelled_in = state.round
        last = state.round == rounds
        view.train(method, until=1.0 if last else teacher + (1.0 - teacher) * state.round / rounds)
        state.round += 1


def candidates(view: View, most: int) -> Tensor:
    """At most `most` places (C,) in the unlabelled pool, drawn without replacement; all of them where they suffice."""
    n = len(view.unlabeled)
    if n <= most:
        return torch.arange(n, device=view.device)
    return torch.randperm(n, generator=view.generator, device=view.device)[:most]


def draw(n: int, size: int, view: View) -> Tensor:
    """`size` numbers below `n`, with replacement, from the method's own random stream."""
    return torch.randint(n, (size,), generator=view.generator, device=view.device)
