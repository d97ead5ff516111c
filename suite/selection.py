"""Selection rules: which evaluated point of a run counts. Stored in each record, ranked only within their kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .metrics import METRICS


@dataclass(frozen=True)
class Rule:
    """The point with the best value of `by` counts, the earlier of equal ones; the last point where `by` is None.

    `better` is the direction of `by`, "metric" for that of the task's metric. `labels` names the set whose labels the
    rule spends.
    """

    name: str
    title: str
    by: str | None
    better: str = "metric"
    labels: str | None = None


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("last", "the last predictor", None),
        Rule("validation", "best validation score", "validation", labels="validation"),
        Rule("source-validation", "best score on held-out source examples", "source_validation",
             labels="source_validation"),
        Rule("entropy", "least entropy on unlabelled examples (label-free)", "entropy", "lower"),
        Rule("transfer-score", "highest Transfer Score on unlabelled examples (label-free)", "transfer_score",
             "higher"),
        Rule("oracle", "best test score (an upper bound)", "test"),
    )
}  # fmt: skip


def chosen_point(rule: str, metric: str, points: Sequence[Mapping[str, float]]) -> int:
    """The index of the point that counts; raises `ValueError` when a point lacks the score that the rule needs."""
    chosen = RULES[rule]
    if chosen.by is None:
        return len(points) - 1
    if not all(chosen.by in point for point in points):
        what = chosen.by.replace("_", " ")
        raise ValueError(f"selection '{rule}' needs a {what}{'' if 'score' in what else ' score'} at every point")
    better = METRICS[metric].better if chosen.better == "metric" else chosen.better
    sign = 1 if better == "higher" else -1
    return max(range(len(points)), key=lambda index: (sign * points[index][chosen.by or ""], -index))
