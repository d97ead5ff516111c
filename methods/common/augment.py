"""The view of a batch that a method trains on, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ...suite.errors import UsageError
from ...suite.protocols.adaptation import AdaptationTask, Batch

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_NAMES = {"none": "x", "weak": "weak", "strong": "strong"}


def chosen_view(batch: Batch, augment: str) -> Tensor:
    """The inputs (B, ...) of `batch` as they are ("none"), or their "weak" or "strong" view."""
    return getattr(batch, _NAMES[augment])  # type: ignore[no-any-return]


def has_strong(view: View) -> bool:
    """Whether the task of `view` has a strong augmentation."""
    return type(view.task).strong is not AdaptationTask.strong


def check_augment(method: str, augment: str, view: View) -> None:
    """Raises `UsageError` when `augment` is "strong" and the task of `view` has no strong augmentation."""
    if augment == "strong" and not has_strong(view):
        raise UsageError(
            f"{type(view.task).__name__} has no strong augmentation; run {method} with augment=weak or "
            "augment=none there."
        )
