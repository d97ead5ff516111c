"""Tags of named entities, and the scores of entities as `conlleval` defines them; pure functions on arrays.

Tags are numbers: 0 is O, 1 + 2 t is B of type t, 2 + 2 t is I of type t.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...suite.bundle import Array
from ...suite.scoring import Scores


def tag_names(types: Sequence[str]) -> tuple[str, ...]:
    """The tags of `types` in the order of their numbers: O, B-first, I-first, B-second, ..."""
    return ("O", *(f"{mark}-{name}" for name in types for mark in "BI"))


def spans(tags: Array) -> Array:
    """The entities in tags (W,), as rows (first word, last word, type), int64 (E, 3).

    An entity begins at a B, and at an I that follows an O or another type, and ends before the next one or an O: the
    rule of `conlleval` (Tjong Kim Sang and De Meulder 2003, CoNLL-2003), under which IOB1 and IOB2 are both read right.
    """
    tags = np.asarray(tags, np.int64)
    begins = _begins(tags)
    inside, follows = tags > 0, np.append(tags[1:], 0)
    ends = inside & ((follows == 0) | np.append(begins[1:], True))
    return np.stack([np.flatnonzero(begins), np.flatnonzero(ends), (tags[begins] - 1) // 2], axis=1)


def _begins(tags: Array) -> Array:
    before = np.append(0, tags[:-1])
    other_type = (tags - 1) // 2 != (before - 1) // 2
    begins: Array = (tags > 0) & ((tags % 2 == 1) | (before == 0) | other_type)
    return begins


def as_iob2(tags: Array) -> Array:
    """Tags (W,) of the same entities, each beginning with B."""
    tags = np.asarray(tags, np.int64)
    kinds = (tags - 1) // 2
    return np.where(tags == 0, 0, np.where(_begins(tags), 1 + 2 * kinds, 2 + 2 * kinds))


def score_entities(predicted: Array, true: Array, types: Sequence[str]) -> Scores:
    """Precision, recall and F1 over all entities, and F1 by type, from tags (N, W); each row ends with an O.

    An entity is found if its first word, its last word and its type are right. `token_accuracy` is taken over all
    words that either side gives a tag. Where nothing is predicted, or nothing is there, a share is 0.
    """
    found, there = spans(predicted.ravel()), spans(true.ravel())
    size = predicted.size + 1
    one, other = ((rows[:, 0] * size + rows[:, 1]) * len(types) + rows[:, 2] for rows in (found, there))
    right = np.intersect1d(one, other, assume_unique=True) % len(types)
    counts = [np.bincount(kinds, minlength=len(types)) for kinds in (right, found[:, 2], there[:, 2])]
    precision, recall, f1 = _shares(*(int(count.sum()) for count in counts))
    named = (predicted > 0) | (true > 0)
    metrics = {
        "entity_f1": f1,
        "entity_precision": precision,
        "entity_recall": recall,
        "token_accuracy": float((predicted == true)[named].mean()) if named.any() else 0.0,
    }
    by_type = {name: _shares(*(int(count[at]) for count in counts))[2] for at, name in enumerate(types)}
    return Scores(metrics, len(true), {"entity_f1": by_type})


def _shares(right: int, found: int, there: int) -> tuple[float, float, float]:
    precision, recall = right / max(found, 1), right / max(there, 1)
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0
