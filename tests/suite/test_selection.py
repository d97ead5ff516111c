"""Which evaluated point counts, by every rule, with ties and in both directions."""

from __future__ import annotations

import pytest

from selfbench.suite.metrics import METRICS
from selfbench.suite.selection import RULES, chosen_point

TEST = [0.4, 0.1, 0.3, 0.1]
VALIDATION = [0.3, 0.5, 0.2, 0.2]


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
    ],
)
def test_the_chosen_point(rule: str, metric: str, chosen: int) -> None:
    """Of equal points the earlier one is chosen: 1 before 3 by test error, 2 before 3 by validation error."""
    assert chosen_point(rule, metric, VALIDATION, TEST) == chosen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("metric", ["error", "accuracy"])
def test_of_points_that_are_all_equal_the_first_or_the_last_counts(rule: str, metric: str) -> None:
    assert chosen_point(rule, metric, [0.2] * 3, [0.5] * 3) == (2 if rule == "last" else 0)
    assert chosen_point(rule, metric, [0.2], [0.5]) == 0


@pytest.mark.parametrize("validation", [[], [0.1], [0.1] * 5])
def test_validation_needs_a_score_at_every_point(validation: list[float]) -> None:
    with pytest.raises(ValueError, match="selection 'validation' needs a validation score at every point"):
        chosen_point("validation", "error", validation, TEST)


def test_the_other_rules_do_without_validation() -> None:
    assert chosen_point("last", "error", [], TEST) == 3
    assert chosen_point("oracle", "error", [], TEST) == 1


def test_rules_and_metrics_are_described() -> None:
    assert [rule.name for rule in RULES.values()] == list(RULES)
    assert [name for name, rule in RULES.items() if rule.uses_validation] == ["validation"]
    assert "upper bound" in RULES["oracle"].title
    assert {name for name, metric in METRICS.items() if metric.better == "higher"} == {"accuracy"}


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
