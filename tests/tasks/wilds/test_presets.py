"""The published hyper-parameters of WILDS 2.0 are those that its tasks get."""

from __future__ import annotations

from typing import Any

import pytest

from selfbench.suite import registry
from selfbench.suite.suites import misfit

PUBLISHED = ("afn", "coral", "dann", "fixmatch", "noisy-student", "pseudo-label", "swav")
NAMED = {entry.options["preset"]: entry for entry in registry.entries("task").values()}
UNLABELLED = [
    "amazon", "camelyon17", "civilcomments", "domainnet", "fmow", "globalwheat", "iwildcam", "ogb-molpcba", "poverty",
]  # fmt: skip
NOT_RUN = {("amazon", "noisy-student"), ("civilcomments", "noisy-student")}
"""Pairs that fit and that WILDS 2.0 has not run."""


@pytest.mark.parametrize("name", UNLABELLED)
@pytest.mark.parametrize("method", PUBLISHED)
def test_a_method_that_fits_has_the_preset_of_the_task(name: str, method: str) -> None:
    entry, task = registry.get("method", method), NAMED[f"wilds-{name}"]
    if not misfit(entry, task) and (name, method) not in NOT_RUN:
        assert f"wilds-{name}" in entry.presets


def test_presets_are_those_of_tasks_that_the_method_fits() -> None:
    for entry in registry.entries("method").values():
        for preset in entry.presets:
            if preset.startswith("wilds-"):
                assert not misfit(entry, NAMED[preset]), f"{preset} of {entry.name}"


@pytest.mark.parametrize(
    ("method", "preset", "expected"),
    [
        ("coral", "wilds-iwildcam", {"weight": 10.0, "groups": 2, "augment": "strong", "ratio": 1}),
        ("dann", "wilds-fmow", {"weight": 1.0, "groups": 8, "augment": "strong", "feature_scale": 0.1}),
        ("afn", "wilds-camelyon17", {"weight": 0.01, "step": 1.0, "kind": "stepwise", "augment": "strong"}),
        ("pseudo-label", "wilds-amazon", {"threshold": 0.7, "weight": 1.0, "ramp": 0.4, "augment": "weak"}),
        ("pseudo-label", "wilds-iwildcam", {"threshold": 0.7, "weight": 1.0, "ratio": 1, "augment": "strong"}),
        ("fixmatch", "wilds-fmow", {"threshold": 0.7, "weight": 1.0, "ratio": 1, "augment": "strong"}),
        ("fixmatch", "wilds-poverty", {"weight": 1.0, "ratio": 1, "augment": "strong"}),
        ("pseudo-label", "wilds-globalwheat", {"threshold": 0.5, "weight": 1.0, "ramp": 0.4, "ratio": 1}),
        ("pseudo-label", "wilds-ogb-molpcba", {"threshold": 0.7, "weight": 1.0, "ramp": 0.4, "ratio": 1}),
        ("noisy-student", "wilds-globalwheat", {"dropout": 0.0, "rounds": 2, "ratio": 1, "labels": "hard"}),
        ("noisy-student", "wilds-ogb-molpcba", {"dropout": 0.0, "rounds": 2, "ratio": 1, "labels": "hard"}),
        ("coral", "wilds-ogb-molpcba", {"weight": 0.1, "groups": 4, "ratio": 1}),
        ("dann", "wilds-ogb-molpcba", {"weight": 0.1, "groups": 4, "ratio": 1, "lr_scale": 10.0}),
        ("swav", "wilds-poverty", {"prototypes": 1000, "large": 2, "small": 6, "small_side": 0.4286}),
        ("noisy-student", "wilds-poverty", {"dropout": 0.5, "rounds": 2, "ratio": 1, "labels": "hard"}),
    ],
)
def test_values_of_the_public_configuration(method: str, preset: str, expected: dict[str, Any]) -> None:
    """examples/configs of p-lambda/wilds, 4726775."""
    given = registry.get("method", method).params(preset=preset)
    assert {name: given[name] for name in expected} == expected
