"""Measured errors beside the closed forms: whole runs of `gaussian-shift` over d and n."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.tasks.synthetic.gaussian_shift import LABELED, averaging_error, bayes_error, centres

SEEDS = (0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("d", [20, 200])
@pytest.mark.parametrize("n", [1_000, 10_000])
def test_measured_errors_stand_where_the_closed_forms_say(campaign: Callable[..., Any], d: int, n: int) -> None:
    """Labels alone stand at their curve; `robust-ssl` between that and the oracle, which knows the shifted labels.

    It may pass the oracle by a little: its own labelled examples are not shifted.
    """
    task = f"gaussian-shift-d{d}-n{n}"
    assert registry.get("task", task).load().n == n
    summary = campaign(task, "supervised", "robust-ssl", seeds=SEEDS)
    measured: dict[str, list[float]] = {"supervised": [], "robust-ssl": []}
    assert summary.all_well
    for record in summary.finished:
        assert record.metrics["exact_error"] == pytest.approx(record.metrics["error"], abs=0.02)
        measured[record.spec.method.name].append(record.metrics["exact_error"])
    supervised, robust = (float(np.mean(errors)) for errors in measured.values())
    mu, shifted = centres(d)
    labels, oracle = averaging_error(mu, mu, LABELED), averaging_error(mu, shifted, n)
    assert bayes_error(mu) < oracle
    assert supervised == pytest.approx(labels, abs=0.03)
    assert oracle - 0.01 < robust < supervised - 0.01
    if n == 10_000:
        assert robust == pytest.approx(oracle, abs=0.03)
