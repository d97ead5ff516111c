"""Random streams: one counter-based stream for each purpose, so that none disturbs another."""

from __future__ import annotations

import hashlib

import numpy as np

TUNING_SEEDS_FROM = 100
"""Seeds from here on are for choosing hyper-parameters: no suite names them, and boards leave them out."""


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of run seed `seed`; equal arguments give equal seeds on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream `names`."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))


def fold_of(seed: int, folds: int) -> int | None:
    """The fold of a task whose seeds 0 to `folds` - 1 are the folds of its data; None for a seed that it has not.

    Seeds of tuning are the same folds in turn: they differ from the others in all that is drawn, not in the split.
    """
    if seed >= TUNING_SEEDS_FROM:
        return (seed - TUNING_SEEDS_FROM) % folds
    return seed if 0 <= seed < folds else None
