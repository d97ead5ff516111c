"""Which seeds are for what."""

from __future__ import annotations

TUNING_SEEDS_FROM = 100
"""Seeds from here on are for choosing hyper-parameters: no suite names them, and boards leave them out."""


def fold_of(seed: int, folds: int) -> int | None:
    """The fold of a task whose seeds 0 to `folds` - 1 are the folds of its data; None for a seed that it has not.

    Seeds of tuning are the same folds in turn: they differ from the others in all that is drawn, not in the split.
    """
    if seed >= TUNING_SEEDS_FROM:
        return (seed - TUNING_SEEDS_FROM) % folds
    return seed if 0 <= seed < folds else None
