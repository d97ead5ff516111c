from __future__ import annotations

import math

import pytest

from selfbench.methods.common.ramps import linear, sigmoid


@pytest.mark.parametrize(
    ("progress", "length", "expected"),
    [(0.0, 0.4, 0.0), (0.1, 0.4, 0.25), (0.4, 0.4, 1.0), (0.9, 0.4, 1.0), (0.0, 0.0, 1.0)],
)
def test_linear(progress: float, length: float, expected: float) -> None:
    assert linear(progress, length) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "length", "expected"),
    [(0.0, 0.5, math.exp(-5)), (0.25, 0.5, math.exp(-1.25)), (0.5, 0.5, 1.0), (1.0, 0.5, 1.0), (0.0, 0.0, 1.0)],
)
def test_sigmoid(progress: float, length: float, expected: float) -> None:
    assert sigmoid(progress, length) == pytest.approx(expected)
