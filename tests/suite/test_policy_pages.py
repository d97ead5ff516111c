"""What the pages show of policies beside their accuracy: what they forget, and what of their texts does not parse."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfbench.suite.record import Point, Record
from selfbench.suite.render import build_site
from selfbench.suite.store import Store

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
generated = importlib.import_module("generated_records")

TASK = "asdiv-formulas"
METHODS = ("supervised-lm", "rest-em", "cream")
Change = Callable[[Record], Record]


@pytest.fixture
def pages(tmp_path: Path) -> Callable[[Change], tuple[str, str]]:
    """The page of the task, and that of one run of rest-em, from records that `change` has changed."""

    def call(change: Change) -> tuple[str, str]:
        store = Store(tmp_path / "results")
        for method in METHODS:
            for seed in range(3):
                made = generated.make_record(TASK, method, 0, seed)
                store.write(change(made) if made.status == "ok" else made)
        with store.index() as index:
            build_site(index, [generated.generated_suite("standard")], tmp_path / "site",
                       catalogue=generated.generated_catalogue())  # fmt: skip
        run = generated.make_record(TASK, "rest-em", 0, 1).run_id
        return tuple((tmp_path / "site" / name).read_text() for name in (f"tasks/{TASK}.html", f"runs/{run}.html"))

    return call


def columns(page: str, caption: str) -> dict[str, list[str]]:
    """Method -> the cells of its row, under the heads ("") of the table with that caption."""
    [table] = re.findall(rf"<caption[^>]*>{caption}.*?</table>", page, re.DOTALL)
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    ]
    cells = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in rows]
    return {"": cells[0][1:], **{row[0]: row[1:] for row in cells[1:]}}


def test_a_probe_is_a_column_and_a_curve(pages: Callable[[Change], tuple[str, str]]) -> None:
    forgotten = [0.55, 0.4, 0.35]

    def asked(record: Record) -> Record:
        curve = [Point(x=at, values={"accuracy": 0.1 * at, "probe_arc_easy": value, "probe_b_c": 0.5})
                 for at, value in enumerate(forgotten)]  # fmt: skip
        metrics = record.metrics | {"probe_arc_easy": forgotten[-1], "probe_b_c": 0.5}
        return record.model_copy(update={"curve": curve, "metrics": metrics})

    page, run = pages(asked)
    table = columns(page, "Other metrics")
    at, other = table[""].index("ARC-Easy, asked besides"), table[""].index("Probe: b c")
    assert {row[at] for name, row in table.items() if name} == {"35.0"}
    assert {row[other] for name, row in table.items() if name} == {"50.0"}
    [section] = re.findall(r"<h3>ARC-Easy, asked besides</h3>.*?(?=<h3>)", page, re.DOTALL)
    assert section.count('class="panel ') == len(METHODS)
    assert "from 55.0 at the first point to 35.0 at the last" in section
    assert "Accuracy (line), ARC-Easy, asked besides (dashed)" in run
    assert len(set(re.findall(r'id="([^"]+)"', page))) == len(re.findall(r'id="([^"]+)"', page))


def test_what_does_not_parse_is_a_column(pages: Callable[[Change], tuple[str, str]]) -> None:
    def parsed(record: Record) -> Record:
        metrics = record.metrics | {"response_parse_rate": 0.9, "parse_rate": 0.7}
        own = {"own_parse_rate": 0.6} if record.spec.method.name == "cream" else {}
        return record.model_copy(update={"metrics": metrics, "diagnostics": {**own, "labels": 3.0}})

    page, run = pages(parsed)
    table = columns(page, "Other metrics")
    heads = ["Scored responses that parse", "Votes that parse", "Own samples that parse"]
    shown = {name: [row[table[""].index(head)] for head in heads] for name, row in table.items() if name}
    assert shown["cream"] == ["90.0", "70.0", "60.0"]
    assert shown["rest-em"] == ["90.0", "70.0", "–"]
    assert "labels" not in " ".join(table[""])
    assert "Scored responses that parse" in run


def test_tokens_are_columns(pages: Callable[[Change], tuple[str, str]]) -> None:
    def counted(record: Record) -> Record:
        if record.spec.method.name == "cream":
            return record
        apart = {"tokens": 6000, "generated_tokens": 1000, "scored_tokens": 2000, "trained_tokens": 3000}
        return record.model_copy(update={"cost": record.cost.model_copy(update=apart)})

    page, run = pages(counted)
    table = columns(page, "Tokens of a run")
    assert table[""] == ["All", "Generated", "Scored", "Trained on"]
    assert [text.split("\N{NO-BREAK SPACE}") for text in table["rest-em"]] == [[f"{n}.0", "k"] for n in (6, 1, 2, 3)]
    assert table["cream"][1:] == ["–"] * 3, "of its records only the sum is known"
    assert "<dt>Tokens trained on</dt><dd>3,000</dd>" in run


def test_a_judge_without_a_gate_is_marked(pages: Callable[[Change], tuple[str, str]], monkeypatch: Any) -> None:
    made = generated.generated_catalogue()
    cream = made.methods["cream"]
    known = {**made.methods, "cream": replace(cream, options={**cream.options, "own_judge": True})}
    monkeypatch.setattr(generated, "generated_catalogue", lambda: replace(made, methods=known))
    page, _ = pages(lambda record: record)
    rows = re.findall(r"<tr class=.*?</tr>", page, re.DOTALL)
    assert {">cream</a>" in row for row in rows if "own judge, no gate" in row} == {True}
    assert sum("own judge, no gate" in row for row in rows) == 1
