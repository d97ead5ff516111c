"""Scores against numbers worked out by hand, and against a loop over single examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfbench.suite.metrics import metric_of
from selfbench.suite.protocols.stream import StreamTask
from selfbench.suite.scoring import ECE_BINS, label_correlation, log_softmax, score_classification, score_pool

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]])
LABELS = np.array([0, 2, 2, 2])


def test_numbers_worked_out_by_hand() -> None:
    scores = score_classification(np.log(P), LABELS)
    assert scores.n == 4
    assert scores.metrics["error"] == 0.25
    assert scores.metrics["accuracy"] == 0.75
    assert scores.metrics["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.1) + math.log(0.4) + math.log(0.9)) / 4)
    brier = (0.09 + 0.04 + 0.01) + (0.01 + 0.64 + 0.81) + (0.09 + 0.09 + 0.36) + (0.0025 + 0.0025 + 0.01)
    assert scores.metrics["brier"] == pytest.approx(brier / 4)
    # Four bins with one example each: the gap between confidence and 0 or 1.
    assert scores.metrics["ece"] == pytest.approx((0.3 + 0.8 + 0.6 + 0.1) / 4)
    assert scores.groups == {}
    assert "worst_group_error" not in scores.metrics


def test_label_correlation_worked_out_by_hand() -> None:
    # Three of five neighbours share their class; of the 15 pairs of images 4 do, whatever the order.
    assert label_correlation(np.array([0, 0, 0, 1, 2, 2])) == pytest.approx(3 / 5 - 4 / 15)
    assert label_correlation(np.array([0, 1, 0, 1])) == pytest.approx(0 - 2 / 6)
    assert label_correlation(np.array([4])) == 0.0


def test_ece_averages_within_a_bin() -> None:
    """Confidences 0.62 and 0.64 share the bin [0.6, 0.667): |1.26 - 1| / 2 = 0.13, not the mean of single gaps."""
    p = np.array([[0.62, 0.38], [0.64, 0.36]])
    assert score_classification(np.log(p), np.array([0, 1])).metrics["ece"] == pytest.approx(0.13)


def test_ece_of_a_calibrated_predictor_is_zero_and_of_a_certain_wrong_one_is_one() -> None:
    calibrated = np.log(np.tile([0.75, 0.25], (4, 1)))
    assert score_classification(calibrated, np.array([0, 0, 0, 1])).metrics["ece"] == pytest.approx(0.0)
    certain = np.tile([1000.0, 0.0], (4, 1))
    assert score_classification(certain, np.ones(4, int)).metrics["ece"] == 1.0
    assert score_classification(certain, np.zeros(4, int)).metrics["ece"] == 0.0


def test_ties_go_to_the_first_class() -> None:
    scores = score_classification(np.zeros((3, 4)), np.array([0, 1, 3]))
    assert scores.metrics["error"] == pytest.approx(2 / 3)
    assert scores.metrics["nll"] == pytest.approx(math.log(4))
    assert scores.metrics["brier"] == pytest.approx(0.75)


def test_groups_and_the_worst_of_them() -> None:
    domains = np.array([0, 1, 1, 3])
    scores = score_classification(np.log(P), LABELS, domains, ("fog", "snow", "never seen", "blur"))
    assert scores.groups == {"error": {"fog": 0.0, "snow": 0.5, "blur": 0.0}}
    assert scores.metrics["worst_group_error"] == 0.5
    assert scores.metrics["error"] == 0.25


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[3e38, -3e38], [-1e30, 1e30]], np.float32)
    scores = score_classification(logits, np.array([0, 1]))
    assert all(math.isfinite(value) for value in scores.metrics.values())
    assert scores.metrics["nll"] == 0.0
    wrong = score_classification(logits, np.array([1, 0])).metrics
    assert math.isfinite(wrong["nll"])
    assert wrong["nll"] > 1e29


def test_log_softmax_sums_to_one_and_ignores_a_shift() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)) * 20
    np.testing.assert_allclose(np.exp(log_softmax(logits)).sum(axis=1), 1.0)
    np.testing.assert_allclose(log_softmax(logits + 1000.0), log_softmax(logits), atol=1e-9)


def test_a_loop_over_examples_gives_the_same() -> None:
    random = np.random.default_rng(1)
    logits = (random.normal(size=(300, 5)) * 3).astype(np.float32)
    labels = random.integers(0, 5, 300)
    nll = brier = wrong = 0.0
    bins: dict[int, list[tuple[float, float]]] = {}
    for row, label in zip(logits.astype(float), labels, strict=True):
        weights = [math.exp(value - max(row)) for value in row]
        p = [value / sum(weights) for value in weights]
        guess = max(range(5), key=lambda k: row[k])
        nll -= math.log(p[label])
        brier += sum((p[k] - (k == label)) ** 2 for k in range(5))
        wrong += guess != label
        bins.setdefault(min(int(max(p) * ECE_BINS), ECE_BINS - 1), []).append((max(p), float(guess == label)))
    ece = sum(abs(sum(c for c, _ in items) - sum(a for _, a in items)) for items in bins.values())
    metrics = score_classification(logits, labels).metrics
    expected = {"nll": nll, "brier": brier, "error": wrong, "ece": ece}
    for name, total in expected.items():
        assert metrics[name] == pytest.approx(total / 300)


def test_the_labels_that_a_predictor_would_give_a_pool() -> None:
    """One of five examples has no known class; two of the others are predicted with confidence, one of them wrong."""
    p = np.array([[0.96, 0.03, 0.01], [0.02, 0.96, 0.02], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.98, 0.01, 0.01]])
    labels = np.array([0, 2, 0, 1, -1])
    expected = {"pool_accuracy": 0.5, "confident_share": 0.5, "confident_accuracy": 0.5}
    assert score_pool(np.log(p), labels) == expected
    assert score_pool(np.log(p[2:4]), labels[2:4]) == {"pool_accuracy": 0.5, "confident_share": 0.0}
    assert score_pool(np.log(p), np.full(5, -1)) == {}


def test_a_stream_whose_domains_differ_in_size_has_the_mean_of_their_errors_too() -> None:
    labels, logits = np.array([0, 1, 0, 0, 1]), np.log(np.array([[0.9, 0.1]] * 5))
    names = ("small", "empty", "large")
    unequal = StreamTask().score(logits, labels, np.array([0, 0, 2, 2, 2]), names)
    assert unequal.groups["error"] == {"small": 0.5, "large": pytest.approx(1 / 3)}
    assert unequal.metrics["error"] == pytest.approx(2 / 5)
    assert unequal.metrics["mean_domain_error"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    equal = StreamTask().score(logits[:4], labels[:4], np.array([0, 0, 2, 2]), names)
    assert "mean_domain_error" not in equal.metrics, "it is the error"
    assert metric_of("mean_domain_error").title == "Error, mean over domains"
    assert metric_of("mean_domain_error").percent
