"""Splits with a few labels a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..suite.protocols.adaptation import Split

if TYPE_CHECKING:
    from ..suite.bundle import Array


def few_labels(labels: Array, n: int, draw: np.random.Generator, labeled: int, validation: int) -> Split:
    """Draw `labeled` and `validation` of the first `n` examples of each class; the others of the n are unlabelled.

    `labels` (N,) are the classes of all examples; those from `n` on are the test examples.
    """
    chosen: list[Array] = []
    held: list[Array] = []
    for group in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels[:n] == group))
        chosen.append(members[:labeled])
        held.append(members[labeled : labeled + validation])
    seen = draw.permutation(np.concatenate(chosen))
    kept = draw.permutation(np.concatenate(held))
    return Split(
        labeled=seen,
        labels=np.asarray(labels[seen]),
        unlabeled=np.setdiff1d(np.arange(n), np.concatenate([seen, kept])),
        validation=kept,
        test=np.arange(n, len(labels)),
    )
