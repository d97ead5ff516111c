"""The registry reads methods without importing them: what it reads is what they are."""

from __future__ import annotations

import dataclasses
import re

import pytest

from selfbench.suite.hyper import check_value
from selfbench.suite.needs import NEEDS
from selfbench.suite.protocols.adaptation_method import AdaptationMethod
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.stream import StreamMethod
from selfbench.suite.registry import PACKAGE, Entry, entries

OURS = {name: entry for name, entry in entries("method").items() if PACKAGE / "methods" in entry.file.parents}
BASES = {"stream": StreamMethod, "adaptation": AdaptationMethod, "policy": PolicyMethod}

each = pytest.mark.parametrize("entry", OURS.values(), ids=OURS)


def test_the_seven_first_methods_are_registered() -> None:
    first = {"source", "norm", "tent", "supervised", "pseudo-label", "mean-teacher", "fixmatch"}
    assert first <= OURS.keys()


@each
def test_the_parsed_view_equals_the_imported_one(entry: Entry) -> None:
    cls = entry.load()
    assert cls.__selfbench__ == {"kind": "method", "name": entry.name, **entry.options}
    assert issubclass(cls, BASES.get(entry.protocol, object))
    fields = {field.name: field for field in dataclasses.fields(cls)}
    assert list(fields) == [item.name for item in entry.hypers]
    for item in entry.hypers:
        rule = fields[item.name].metadata["hyper"]
        assert fields[item.name].default == item.default
        assert type(fields[item.name].default) is type(item.default)
        parsed = {name: getattr(item, name) for name in ("low", "high", "log", "choices", "help", "added", "asks")}
        assert rule == parsed
    assert dict(cls.presets) == entry.presets
    assert cls(**entry.params()) == cls()


@each
def test_defaults_and_presets_lie_within_their_bounds(entry: Entry) -> None:
    for values in ({}, *entry.presets.values()):
        assert entry.params(values) == entry.params() | values
    for item in entry.hypers:
        rule = {"low": item.low, "high": item.high, "choices": item.choices}
        check_value(entry.name, item.name, item.default, item.default, rule)
        assert item.choices is not None or None not in (item.low, item.high), f"{item.name} has no search range"
        assert not (item.log and item.low == 0), f"{item.name} cannot be drawn on a log scale from 0"


@each
def test_paper_needs_and_summary_are_well_formed(entry: Entry) -> None:
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+|-", entry.options["paper"])
    assert set(entry.options["needs"]) <= NEEDS.keys()
    assert entry.summary.endswith(".")
    assert len(entry.summary) <= 110


def test_a_preset_that_a_task_names_belongs_to_a_method() -> None:
    named = {entry.options["preset"]: entry.name for entry in entries("task").values() if entry.options["preset"]}
    published = {preset for entry in OURS.values() for preset in entry.presets}
    assert named.keys() <= published, [named[preset] for preset in named.keys() - published]
