"""Plots of a family of tasks beside known values: of declarations and records alone."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from selfbench.suite import registry
from selfbench.suite.render.references import members, panel_plots


def declared(at: int, panel: str = "d = 2", **more: Any) -> dict[str, Any]:
    own = {"family": "toys", "panel": panel, "axis": "n", "at": at, "metric": "error", **more}
    return {"references": own}


OPTIONS = {
    "late": declared(1000),
    "early": declared(10, curves={"floor": ((1, 0.1), (100, 0.2), (10000, 0.2))}),
    "wide": declared(10, panel="d = 20"),
    "other": {"references": {**declared(10)["references"], "family": "others"}},
    "plain": {},
}


def board(**methods: list[float]) -> tuple[Any, dict[str, Any]]:
    """A board with a run a value, and its records."""
    records, scores = {}, []
    for name, values in methods.items():
        outcomes = []
        for seed, value in enumerate(values):
            run = f"{name}-{seed}-{value}"
            records[run] = {"metrics": {"error": value}}
            outcomes.append(SimpleNamespace(run=SimpleNamespace(run_id=run), value=value, seed=seed))
        row = SimpleNamespace(outcomes=outcomes, method=name)
        scores.append(SimpleNamespace(row=row, label=name, kind="method", finished=True))
    return SimpleNamespace(scores=scores), records


def test_members_are_those_of_the_family_by_panel_and_place() -> None:
    assert members(OPTIONS, "toys") == ["early", "late", "wide"]
    assert members(OPTIONS, "nobody") == []


def test_a_panel_holds_means_and_ranges_beside_the_curves() -> None:
    early, first = board(tent=[0.3, 0.5], sar=[0.2])
    late, second = board(tent=[0.25])
    [panel, empty] = panel_plots(OPTIONS, {"early": early, "late": late}, first | second, "toys")
    assert (panel.title, panel.axis, panel.places) == ("d = 2", "n", (10, 1000))
    assert panel.curves == (("floor", (pytest.approx(0.15), 0.2)),)
    assert [plot.label for plot in panel.plots] == ["sar", "tent"]
    tent = panel.plots[1]
    assert [(p.at, p.mean, p.low, p.high) for p in tent.points] == [(10, 0.4, 0.3, 0.5), (1000, 0.25, 0.25, 0.25)]
    assert tent.svg.count("<circle") == 2
    assert tent.svg.count('class="ref r0"') == 1
    assert "at 10: 40.0; 1,000: 25.0" in tent.svg
    assert ">1,000</text>" in tent.svg
    # 10 and 1,000 of 1 to 10,000 stand at a quarter and three quarters.
    assert re.findall(r'<circle class="d" cx="([\d.]+)%"', str(tent.svg)) == ["25.0", "75.0"]
    assert (empty.title, empty.plots) == ("d = 20", ())


def test_names_cannot_break_out_of_the_plot() -> None:
    hostile = "</svg><script>alert(1)</script>"
    early, records = board(**{hostile: [0.3]})
    [panel, _] = panel_plots(OPTIONS, {"early": early}, records, "toys")
    assert "<script>" not in panel.plots[0].svg


def test_every_declaration_is_whole() -> None:
    families: dict[str, set[str]] = {}
    for entry in registry.entries("task").values():
        own = entry.options["references"]
        if own:
            assert {"family", "panel", "axis", "at", "metric"} <= own.keys()
            families.setdefault(f"{own['family']}, {own['panel']}", set()).update(own.get("curves", {}))
    assert families
    assert all(families.values())
