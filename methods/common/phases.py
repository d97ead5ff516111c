"""A training in two phases: on unlabelled examples alone, then on labelled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_method import AdaptationMethod
    from ...suite.protocols.adaptation_view import View


class InPhases(Protocol):
    """What `pretrain_then_finetune` keeps in a method, so that a killed run goes on in its phase."""

    pretraining: bool


def pretrain_then_finetune(state: InPhases, method: AdaptationMethod, view: View, share: float) -> None:
    """Train with `state.pretraining` set for `share` of the budget, then without; each with a schedule of its own.

    `state` is the method itself, whose `setup` has set `pretraining` by `can_pretrain`.
    """
    if state.pretraining:
        view.train(method, until=share)
        state.pretraining = False
    view.train(method)


def can_pretrain(view: View, share: float) -> bool:
    """Whether there is a share of the budget for it, and something to train on."""
    return share > 0 and len(view.unlabeled) > 0
