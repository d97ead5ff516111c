"""Active learning: the protocol `adaptation` repeated, with labels bought in between.

A run begins with the labelled examples of the split. In each round the method is fitted anew, as a run of `adaptation`
with the labels bought so far would fit it; then the task's query strategy chooses examples of the pool, and its oracle
tells their classes. Both act in the scorer: it takes predictions on the pool, and gives the labels of what the strategy
chose and no others. An `AdaptationMethod` runs as it is: it cannot tell a round from a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..bundle import Array
from .adaptation import AdaptationTask


@dataclass(frozen=True)
class Shown:
    """What a query strategy is shown: the predictor's logits and features of the pool and of what is labelled.

    `logits` (U, K) and `labeled_logits` (L, K); `features` (U, D) and `labeled_features` (L, D), the inputs of the
    model's last linear layer, are empty (N, 0) unless the task asks for them (`query_features`).
    """

    logits: Array
    features: Array
    labeled_logits: Array
    labeled_features: Array


class ActiveTask(AdaptationTask):
    """An adaptation task that buys `query_size` labels after each of its `rounds` fits but the last: R queries, R + 1
    fits, each with an equal part of the budget.

    Evaluated is once a round, at its end, whatever the recipe's `points`. `score` must give an `accuracy`, of which the
    learning curve is made.
    """

    rounds: ClassVar[int] = 10
    query_size: ClassVar[int] = 10
    query_features: ClassVar[bool] = False

    def query(self, shown: Shown, size: int, draw: np.random.Generator) -> Array:
        """Places (size,) in the pool of the examples to buy. Called by the scorer, without labels."""
        raise NotImplementedError

    def oracle(self, private: Mapping[str, Array], indices: Array) -> Array:
        """The true classes (N,) of the examples `indices`. Called by the scorer alone."""
        return np.asarray(private["labels"][indices])


def learning_curve_area(labels: Array, accuracy: Array) -> float:
    """The area under accuracy over labels, by the trapezoidal rule, divided by the span of labels: a mean accuracy.

    `labels` (N,) rise strictly, N > 1.
    """
    return float(np.trapezoid(accuracy, labels) / (labels[-1] - labels[0]))
