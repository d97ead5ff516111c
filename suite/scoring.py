"""Scores of classifications from sealed predictions and hidden labels; pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ECE_BINS = 15
CONFIDENT = 0.95
"""From this confidence on a prediction is one that a method would take for a label: FixMatch's threshold."""


@dataclass(frozen=True)
class Scores:
    """`metrics`: one number per metric; `groups`: metric -> group -> number; `n`: evaluated items."""

    metrics: dict[str, float]
    n: int
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


def score_pool(logits: Array, labels: Array) -> dict[str, float]:
    """What labels a predictor would give a pool: logits (N, K) against classes (N,), -1 where none is known.

    `pool_accuracy` is the share of right predictions, `confident_share` that of predictions with a confidence of 0.95
    or more, `confident_accuracy` the share of these that are right, left out where there are none. Empty where no class
    is known.
    """
    known = labels >= 0
    logits, labels = logits[known], labels[known]
    if not len(labels):
        return {}
    right = logits.argmax(axis=1) == labels
    confident = np.exp(log_softmax(logits)).max(axis=1) >= CONFIDENT
    scores = {"pool_accuracy": float(right.mean()), "confident_share": float(confident.mean())}
    return scores | ({"confident_accuracy": float(right[confident].mean())} if confident.any() else {})


def log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]


def score_classification(
    logits: Array, labels: Array, domains: Array | None = None, domain_names: tuple[str, ...] = ()
) -> Scores:
    """Error, accuracy, NLL, Brier score and ECE of logits (N, K) against classes (N,), and the error by domain.

    Brier: mean over items of the summed squared distance between probabilities and the one-hot label (Brier, 1950).
    ECE: 15 equal-width bins of confidence (Guo et al., 2017).
    """
    labels = labels.astype(np.int64)
    n = len(labels)
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    predicted = logits.argmax(axis=1)
    wrong = predicted != labels
    confidence = p.max(axis=1)
    one_hot = np.zeros_like(p)
    one_hot[np.arange(n), labels] = 1.0
    metrics = {
        "error": float(wrong.mean()),
        "accuracy": float(1.0 - wrong.mean()),
        "nll": float(-log_p[np.arange(n), labels].mean()),
        "brier": float(((p - one_hot) ** 2).sum(axis=1).mean()),
        "ece": _ece(confidence, ~wrong),
    }
    groups: dict[str, dict[str, float]] = {}
    if domains is not None:
        by_domain = {
            name: float(wrong[domains == index].mean())
            for index, name in enumerate(domain_names)
            if np.any(domains == index)
        }
        groups["error"] = by_domain
        metrics["worst_group_error"] = max(by_domain.values())
    return Scores(metrics, n, groups)


def label_correlation(labels: Array) -> float:
    """How often neighbours in a stream share their class, less how often they would in a plain shuffle.

    `labels` (N,) in the stream's order. About 0 for a shuffled stream, near 1 minus the sum of squared class shares for
    a sorted one. Stands in every record of a stream and on its task's page: batch statistics live or die by it.
    """
    n = len(labels)
    if n < 2:
        return 0.0
    _, counts = np.unique(labels, return_counts=True)
    expected = float((counts * (counts - 1)).sum() / (n * (n - 1)))
    return float((labels[1:] == labels[:-1]).mean()) - expected


def _ece(confidence: Array, correct: Array) -> float:
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    claimed = np.bincount(bins, weights=confidence, minlength=ECE_BINS)
    reached = np.bincount(bins, weights=correct, minlength=ECE_BINS)
    return float(np.abs(claimed - reached).sum() / len(correct))
