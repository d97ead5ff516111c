"""Ramps: how the weight of an unlabelled loss rises from 0 to 1 over the first part of a budget."""

from __future__ import annotations

import math


def linear(progress: float, length: float) -> float:
    """`progress / length`, at most 1; both are shares of the budget. A `length` of 0 means no ramp."""
    return min(1.0, progress / length) if length > 0 else 1.0


def sigmoid(progress: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t = `linear(progress, length)` (Laine & Aila 2017, arXiv:1610.02242)."""
    return math.exp(-5.0 * (1.0 - linear(progress, length)) ** 2)
