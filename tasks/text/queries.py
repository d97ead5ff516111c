"""Query strategies of active learning: which examples of the pool to buy labels of, from predictions on them.

Each function takes what is shown (`Shown`: logits (U, K) of the pool and (L, K) of what is labelled, and features), the
number of examples to choose and a random stream, and returns their places (size,) in the pool, the most wanted first.
Of equal scores the example that stands earlier in the pool comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...suite.bundle import Array
from ...suite.protocols.active import Shown
from ...suite.scoring import log_softmax

Strategy = Callable[[Shown, int, np.random.Generator], Array]
NEIGHBOURS = 10
"""Labelled neighbours of an example whose predictions `contrastive` compares with its own (the authors' value)."""
_BLOCK = 1024


def random(shown: Shown, size: int, draw: np.random.Generator) -> Array:
    """`size` examples, each set of them with the same chance."""
    return draw.permutation(len(shown.logits))[:size]


def entropy(shown: Shown, size: int, draw: np.random.Generator) -> Array:
    """Prediction entropy: the largest - sum_k p_k log p_k (Holub et al., 2008, Entropy-based active learning)."""
    return _largest(prediction_entropy(shown.logits), size)


def breaking_ties(shown: Shown, size: int, draw: np.random.Generator) -> Array:
    """Breaking ties, or margin: the smallest difference between the two largest probabilities (Luo et al., 2005,
    Active learning to recognize multiple types of plankton, JMLR 6).
    """
    return _largest(-margin(shown.logits), size)


def contrastive(shown: Shown, size: int, draw: np.random.Generator) -> Array:
    """Contrastive active learning (Margatina et al., 2021, arXiv:2109.03764, algorithm 1): the largest mean divergence
    KL(p_l || p) between the predictions of the nearest labelled examples l and the example's own.
    """
    return _largest(divergence_from_neighbours(shown, NEIGHBOURS), size)


STRATEGIES: Mapping[str, Strategy] = {
    "random": random,
    "entropy": entropy,
    "breaking-ties": breaking_ties,
    "contrastive": contrastive,
}
WITH_FEATURES = ("contrastive",)
"""The strategies that look at features."""


def prediction_entropy(logits: Array) -> Array:
    """The entropy (N,) in nats of the predictions of logits (N, K)."""
    log_p = log_softmax(logits)
    entropies: Array = -(np.exp(log_p) * log_p).sum(axis=1)
    return entropies


def margin(logits: Array) -> Array:
    """The difference (N,) between the largest and the second largest probability of logits (N, K), K > 1."""
    two = np.partition(np.exp(log_softmax(logits)), -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def divergence_from_neighbours(shown: Shown, neighbours: int) -> Array:
    """The mean KL(p_l || p_u) (U,), in nats, over the `neighbours` labelled examples l nearest to u.

    Nearest by the Euclidean distance of the features as they are, which are of length 1 for frozen sentence vectors.
    The authors' code does likewise; the one of small-text looks for neighbours in the whole data set.
    """
    k = min(neighbours, len(shown.labeled_logits))
    own, theirs = log_softmax(shown.logits), log_softmax(shown.labeled_logits)
    p = np.exp(theirs)
    negative_entropy = (p * theirs).sum(axis=1)
    points, anchors = shown.features.astype(np.float64), shown.labeled_features.astype(np.float64)
    lengths = (anchors**2).sum(axis=1)
    parts = []
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        near = np.argsort(lengths - 2.0 * points[block] @ anchors.T, axis=1, kind="stable")[:, :k]
        cross = np.einsum("ukc,uc->uk", p[near], own[block])
        parts.append((negative_entropy[near] - cross).mean(axis=1))
    return np.concatenate(parts)


def _largest(scores: Array, size: int) -> Array:
    return np.argsort(-scores, kind="stable")[:size]
