"""The published hyper-parameters of WILDS 2.0 are those that its tasks get."""

from __future__ import annotations

from typing import Any

import pytest

from selfbench.suite import registry
from selfbench.suite.suites import misfit

PUBLISHED = ("afn", "coral", "dann", "fixmatch", "noisy-student", "pseudo-label")
NAMED = {entry.options["preset"]: entry for entry in registry.entries("task").values()}
UNLABELLED = ["amazon", "camelyon17", "civilcomments", "domainnet", "fmow", "iwildcam", "poverty"]


@pytest.mark.parametrize("name", UNLABELLED)
@pytest.mark.parametrize("method", PUBLISHED)
def test_a_method_that_fits_has_the_preset_of_the_task(name: str, method: str) -> None:
    entry, task = registry.get("method", method), NAMED[f"wilds-{name}"]
    if not misfit(entry, task):
        assert f"wilds-{name}" in entry.presets


def test_presets_are_those_of_tasks() -> None:
    for method in PUBLISHED:
        given = {preset for preset in registry.get("method", method).presets if preset.startswith("wilds-")}
        assert given <= {*NAMED, "wilds-ogb-molpcba"}


@pytest.mark.parametrize(
    ("method", "preset", "expected"),
    [
        ("coral", "wilds-iwildcam", {"weight": 10.0, "groups": 2, "augment": "strong", "ratio": 1}),
        ("dann", "wilds-fmow", {"weight": 1.0, "groups": 8, "augment": "strong", "feature_scale": 0.1}),
        ("afn", "wilds-camelyon17", {"weight": 0.01, "step": 1.0, "kind": "stepwise", "augment": "strong"}),
        ("pseudo-label", "wilds-amazon", {"threshold": 0.7, "weight": 1.0, "ramp": 0.4, "augment": "weak"}),
        ("pseudo-label", "wilds-iwildcam", {"threshold": 0.7, "weight": 1.0, "ratio": 1, "augment": "strong"}),
        ("fixmatch", "wilds-fmow", {"threshold": 0.7, "weight": 1.0, "ratio": 1, "augment": "strong"}),
        ("noisy-student", "wilds-poverty", {"dropout": 0.5, "rounds": 2, "ratio": 1, "labels": "hard"}),
    ],
)
def test_values_of_the_public_configuration(method: str, preset: str, expected: dict[str, Any]) -> None:
    """examples/configs of p-lambda/wilds, 4726775."""
    given = registry.get("method", method).params(preset=preset)
    assert {name: given[name] for name in expected} == expected
