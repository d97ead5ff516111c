"""Which evaluated point counts, by every rule, with ties and in both directions."""

from __future__ import annotations

import pytest

from selfbench.suite.metrics import METRICS
from selfbench.suite.selection import RULES, chosen_point

POINTS = [
    {"test": test, "validation": validation, "source_validation": source, "entropy": entropy, "transfer_score": score}
    for test, validation, source, entropy, score in [
        (0.4, 0.3, 0.9, 0.7, 1.0),
        (0.1, 0.5, 0.9, 0.6, 1.1),
        (0.3, 0.2, 0.1, 0.2, 1.1),
        (0.1, 0.2, 0.9, 0.2, 0.0),
    ]
]


@pytest.mark.parametrize(
    ("rule", "metric", "chosen"),
    [
        ("last", "error", 3),
        ("last", "accuracy", 3),
        ("validation", "error", 2),
        ("validation", "accuracy", 1),
        ("oracle", "error", 1),
        ("oracle", "accuracy", 0),
        ("oracle", "nll", 1),
        ("source-validation", "error", 2),
        ("source-validation", "accuracy", 0),
        ("entropy", "error", 2),
        ("entropy", "accuracy", 2),
        ("transfer-score", "error", 1),
        ("transfer-score", "accuracy", 1),
    ],
)
def test_the_chosen_point(rule: str, metric: str, chosen: int) -> None:
    """Of equal points the earlier one is chosen: 1 before 3 by test error, 2 before 3 by validation error."""
    assert chosen_point(rule, metric, POINTS) == chosen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("metric", ["error", "accuracy"])
def test_of_points_that_are_all_equal_the_first_or_the_last_counts(rule: str, metric: str) -> None:
    point = dict.fromkeys(POINTS[0], 0.2)
    assert chosen_point(rule, metric, [point] * 3) == (2 if rule == "last" else 0)
    assert chosen_point(rule, metric, [point]) == 0


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "last"])
def test_a_rule_needs_its_score_at_every_point(rule: str) -> None:
    lacking = [{name: value for name, value in POINTS[0].items() if name != RULES[rule].by}]
    named = {"entropy": "an entropy", "oracle": "a test"}.get(
        rule, f"a {rule.removesuffix('-score').replace('-', ' ')}"
    )
    with pytest.raises(ValueError, match=f"selection '{rule}' needs {named} score at every point; choose another rule"):
        chosen_point(rule, "error", POINTS + lacking)
    assert chosen_point(rule, "error", POINTS) < 4


def test_last_needs_nothing() -> None:
    assert chosen_point("last", "error", [{}, {}, {}]) == 2


def test_rules_and_metrics_are_described() -> None:
    assert [rule.name for rule in RULES.values()] == list(RULES)
    assert [name for name, rule in RULES.items() if rule.labels] == ["validation", "source-validation"]
    assert "upper bound" in RULES["oracle"].title
    assert {name for name, metric in METRICS.items() if metric.better == "higher"} == {
        "accuracy", "worst_group_accuracy", "worst_region_accuracy", "tenth_percentile_accuracy", "macro_f1",
        "learning_curve_area", "worst_group_correlation", "correlation", "mean_domain_detection_accuracy",
        "entity_f1", "entity_precision", "entity_recall", "token_accuracy", "em_greedy", "f1_greedy",
        "em_exact_extract", "f1_exact_extract", "f1_same_language",
        "detection_accuracy", "class_method_accuracy", "average_precision", "parse_rate", "majority_accuracy",
        "pass_at_k", "lenient_accuracy", "swap_consistency", "rank_correlation", "response_parse_rate",
        "plain_accuracy", "own_parse_rate", "feedback_parse_rate", "judgement_parse_rate", "probe_arc_easy",
        "pool_accuracy", "confident_share", "confident_accuracy",
    }  # fmt: skip


def test_selection_changes_what_counts_and_not_what_happened(campaign) -> None:
    """Three real runs that differ by their rule alone."""
    [validated] = campaign("toy-adaptation", "supervised", selection="validation", budget={"limit": 5000}).finished
    [last] = campaign("toy-adaptation", "supervised", folder="last", budget={"limit": 5000}).finished
    [oracle] = campaign("toy-adaptation", "supervised", folder="o", selection="oracle", budget={"limit": 5000}).finished
    assert last.curve == validated.curve == oracle.curve
    assert last.metrics["error"] == last.curve[-1].values["error"]
    best = min(last.curve, key=lambda point: point.values["validation"])
    assert validated.metrics["error"] == best.values["error"]
    assert validated.diagnostics["selected_at"] == best.x
    assert oracle.metrics["error"] == min(point.values["error"] for point in last.curve)
    assert validated.cost.labels == last.cost.labels + 12, "the labels that selection used are counted"
    assert oracle.cost.labels == last.cost.labels == 12
