"""Selection rules: which evaluated point of a run counts. Stored in each record, ranked only within their kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .metrics import METRICS


@dataclass(frozen=True)
class Rule:
    """The point with the best value of `by` counts, the earlier of equal ones; the last point where `by` is None.

    `better` is the direction of `by`, "metric" for that of the task's metric. `labels` names the set whose labels the
    rule spends; a `label_free` one looks at probabilities of classes on the unlabelled pool.
    """

    name: str
    title: str
    by: str | None
    better: str = "metric"
    labels: str | None = None
    label_free: bool = False


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("last", "the last predictor", None),
        Rule("validation", "best validation score", "validation", labels="validation"),
        Rule("source-validation", "best score on held-out source examples", "source_validation",
             labels="source_validation"),
        Rule("entropy", "least entropy on unlabelled examples (label-free)", "entropy", "lower",
             label_free=True),
        Rule("transfer-score", "highest Transfer Score on unlabelled examples (label-free)", "transfer_score",
             "higher", label_free=True),
        Rule("oracle", "best test score (an upper bound)", "test"),
    )
}  # fmt: skip


def chosen_point(rule: str, metric: str, points: Sequence[Mapping[str, float]]) -> int:
    """The index of the point that counts; raises `ValueError` when a point lacks the score that the rule needs."""
    chosen = RULES[rule]
    if chosen.by is None:
        return len(points) - 1
    if not all(chosen.by in point for point in points):
        what = chosen.by.replace("_", " ").removesuffix(" score")
        article = "an" if what[0] in "aeiou" else "a"
        raise ValueError(
            f"selection '{rule}' needs {article} {what} score at every point; choose another rule with --selection"
        )
    better = METRICS[metric].better if chosen.better == "metric" else chosen.better
    sign = 1 if better == "higher" else -1
    return max(range(len(points)), key=lambda index: (sign * points[index][chosen.by or ""], -index))
