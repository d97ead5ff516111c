"""The constants of the board. The rules page prints these, so that its text cannot differ from the code."""

from __future__ import annotations

from collections.abc import Mapping

from ..needs import UPPER_BOUND_FAMILIES as UPPER_BOUND_FAMILIES

CONFIDENCE = 0.95
"""Of every interval, and of all ranks of one table together."""

MIN_SEEDS = 3
"""Fewer seeds in common than this, and two methods are not compared."""

MIN_TASKS = 3
"""Fewer tasks than this, and a mean rank over tasks gets no interval."""

MDE_FACTOR = 2.8
"""1.96 + 0.84: a two-sided test at 5 % finds a gap of this many standard errors four times out of five."""

DISCORDANT = 0.2
"""Declared share of items on which two methods differ in being right, where it was not measured."""

MDE_METRICS = ("error", "accuracy")
"""Metrics that are shares of evaluated items, for which a minimum detectable effect follows from their number."""

RESAMPLES = 10_000
"""Bootstrap resamples; all distinct ones are enumerated instead where there are no more than this (up to 8 seeds)."""

BOOTSTRAP_SEED = 2015

CONTROL_FAMILIES = ("baseline", "baselines", "control", "controls")

VIEW_CONTROLS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "none": (("erm", ""), ("supervised", "none")),
    "weak": (("supervised", "weak"),),
    "strong": (("erm-augment", ""), ("supervised", "strong")),
}
"""View -> the controls that train on labelled examples in that view alone, by name and, where it has one, `augment`."""
