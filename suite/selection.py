"""Selection rules: which evaluated point of a run counts. Stored in each record, ranked only within their kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .metrics import METRICS


@dataclass(frozen=True)
class Rule:
    """`choose` maps (validation scores, test scores, sign) to the index of the chosen point; higher sign*score wins."""

    name: str
    title: str
    uses_validation: bool
    choose: Callable[[Sequence[float], Sequence[float], int], int]


def _best(scores: Sequence[float], sign: int) -> int:
    """The first of the best points, so that ties go to the earlier one."""
    return max(range(len(scores)), key=lambda index: (sign * scores[index], -index))


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("last", "the last predictor", False, lambda validation, test, sign: len(test) - 1),
        Rule("validation", "best validation score", True, lambda validation, test, sign: _best(validation, sign)),
        Rule("oracle", "best test score (an upper bound)", False, lambda validation, test, sign: _best(test, sign)),
    )
}


def chosen_point(rule: str, metric: str, validation: Sequence[float], test: Sequence[float]) -> int:
    """The index of the point that counts; raises `ValueError` when the rule lacks the scores it needs."""
    if RULES[rule].uses_validation and len(validation) != len(test):
        raise ValueError(f"selection '{rule}' needs a validation score at every point")
    return RULES[rule].choose(validation, test, 1 if METRICS[metric].better == "higher" else -1)
