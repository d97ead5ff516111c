"""Labels, numbers, links and tables as text: what people and spreadsheets read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from selfbench.suite.board import formats
from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.board.export import board_data, board_rows, boards_csv, csv_text
from selfbench.suite.board.scores import score_field
from selfbench.suite.board.table import fields_of
from selfbench.suite.board.text import task_text
from selfbench.suite.metrics import METRICS
from selfbench.suite.registry import Entry
from selfbench.suite.registry.entry import Hyper

ERROR, NLL = METRICS["error"], METRICS["nll"]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    hypers = (Hyper("lr", 1e-3), Hyper("threshold", 0.9), Hyper("flag", False))
    options = {"family": "x", "protocol": "stream", "needs": ("norm-layers",), "version": "2"}
    return Catalogue({"tent": Entry("method", "tent", "Tent", Path(__file__), None, "Tent.", options, hypers)})


@pytest.mark.parametrize(
    ("version", "params", "label"),
    [
        ("2", {"lr": 1e-3, "threshold": 0.9, "flag": False}, "tent"),
        ("2", {"lr": 1e-3, "threshold": 0.0, "flag": False}, "tent[threshold=0.0]"),
        ("2", {"lr": 1e-5, "threshold": 0.9, "flag": True}, "tent[flag=true, lr=1e-05]"),
        ("1", {"lr": 1e-3, "threshold": 0.9, "flag": False}, "tent@1"),
        ("2", {"lr": 1e-3, "threshold": 0.9}, "tent[flag=?]"),
        ("2", {"lr": 1e-3, "threshold": 0.9, "flag": False, "old": 3}, "tent[old=3]"),
    ],
)
def test_labels_show_what_differs_from_the_registered(catalogue, version, params, label) -> None:
    assert catalogue.label("tent", version, json.dumps(params)) == label


def test_labels_of_unregistered_methods_show_everything(catalogue) -> None:
    assert catalogue.label("gone", "1", '{"lr":0.1}') == "gone@1[lr=0.1]"
    assert catalogue.label("gone", "1", "{}") == "gone@1"


def test_numbers() -> None:
    assert formats.number(0.1234, ERROR) == "12.3"
    assert formats.number(0.1234, NLL) == "0.123"
    assert formats.number(None, ERROR) == formats.DASH
    assert formats.signed(0.0251, ERROR) == "+2.5"
    assert formats.signed(-0.0251, ERROR) == f"{formats.MINUS}2.5"
    assert formats.signed(0.0, ERROR) == "0.0"
    assert formats.compact(950).replace("\xa0", " ") == "950"
    assert formats.compact(555_000).replace("\xa0", " ") == "555 k"
    assert formats.compact(1_250_000).replace("\xa0", " ") == "1.2 M"
    assert formats.duration(4.25).replace("\xa0", " ") == "4.2 s"
    assert formats.duration(3 * 3600).replace("\xa0", " ") == "3.0 h"


@pytest.mark.parametrize(
    ("paper", "link"),
    [
        ("arXiv:2006.10726", "https://arxiv.org/abs/2006.10726"),
        ("arXiv:cs/0701001", "https://arxiv.org/abs/cs/0701001"),
        ("10.1000/182", "https://doi.org/10.1000/182"),
        ("doi:10.1000/a<b", "https://doi.org/10.1000/a%3Cb"),
        ("https://example.org/paper", "https://example.org/paper"),
        ("-", None),
        ("javascript:alert(1)", None),
        ('https://example.org/"onload="x', None),
        ("data:text/html,x", None),
    ],
)
def test_only_web_addresses_become_links(paper: str, link: str | None) -> None:
    assert formats.paper_link(paper) == link


def test_page_names_are_tame_and_distinct() -> None:
    names = ["tent", "Tent", "index", "a b", "a-b", "../up", "x" * 200, "é", "-"]
    slugs = [formats.slug(name) for name in names]
    assert slugs[0] == "tent"
    assert len({slug.lower() for slug in slugs}) == len(names)
    for slug in slugs:
        assert slug.replace("~", "").replace("-", "").replace(".", "").replace("_", "").isascii()
        assert "/" not in slug
        assert not slug.startswith(".")


def test_spreadsheets_run_no_formulas() -> None:
    cells = ["=1+1", "+1", "-1", "@x", "\t=1", "\r\n=1", " =1", "a\nb", "plain", -0.5, None]
    row = next(csv.reader(io.StringIO(csv_text(["=head"], [cells]).split("\n", 1)[1])))
    assert row == ["'=1+1", "'+1", "'-1", "'@x", "' =1", "'  =1", "' =1", "a b", "plain", "-0.5", ""]
    assert csv_text(["=head"], []).startswith("'=head")


def test_the_csv_of_a_board_reads_back(board_of) -> None:
    board = board_of({"=evil": [0.1] * 3, "b": [0.2, "timeout", 0.2]})
    rows = list(csv.DictReader(io.StringIO(boards_csv([board]))))
    assert [row["method"] for row in rows] == ["'=evil@1", "b@1"]
    assert float(rows[0]["mean"]) == pytest.approx(0.1)
    assert (rows[1]["timeout"], rows[1]["imputed"], rows[1]["finished"]) == ("1", "1", "2")


def test_the_json_of_a_board_holds_every_run(board_of) -> None:
    data = board_data(board_of({"a": [0.1, "oom", 0.3]}))
    assert [run["status"] for run in data["rows"][0]["runs"]] == ["ok", "oom", "ok"]
    assert [run["value"] for run in data["rows"][0]["runs"]] == [0.1, None, 0.3]


def test_runs_on_different_data_are_marked(run_of) -> None:
    def text(*bundles: str) -> str:
        runs = [run_of("tent", seed, 0.2, bundle=bundle) for seed, bundle in enumerate(bundles)]
        [field] = fields_of(runs, Catalogue())
        return task_text(score_field(field, Catalogue()))

    assert "CAUTION: these runs are on 2 different data digests" in text("a", "b")
    assert "CAUTION" not in text("a", "a")


def test_the_terminal_table_is_aligned_and_says_why(board_of, catalogue) -> None:
    board = board_of({"a": [0.1] * 3, "bb": [0.4] * 3, "c": [0.2, 0.2], "d": ["failed", 0.5, 0.5]}, catalogue)
    lines = task_text(board).splitlines()
    assert lines[1] == "error in %, lower is better; gaps under 4.0 are not ranked; 3 methods ranked over 3 seeds"
    table = lines[2:]
    column = table[0].index("method")
    assert [line[column - 2 :].split()[0] for line in table[1:]] == ["a@1", "c@1", "bb@1", "d@1"]
    assert table[1].startswith("1 ")
    assert table[2].startswith(formats.DASH)
    assert table[2].endswith("not enough seeds")
    assert table[4].endswith("1 failed; 1 imputed")


def test_an_own_judge_without_a_gate_is_marked(run_of) -> None:
    """By what method and task declare, in the terminal, on pages and in the files."""
    options = {"family": "self-rewarding", "protocol": "policy", "metric": "accuracy"}
    judged, told = (
        Entry("method", name, name, Path(__file__), None, "", {**options, "own_judge": own})
        for name, own in (("judged", True), ("told", False))
    )
    open_, gated = (
        Entry("task", name, name, Path(__file__), None, "", {**options, "tags": tags})
        for name, tags in (("open", ()), ("gated", ("judge-gate",)))
    )
    catalogue = Catalogue({"judged": judged, "told": told}, {"open": open_, "gated": gated})
    marked = {}
    for task in ("open", "gated", "unknown"):
        runs = [run_of(name, seed, 0.5, task=task) for name in ("judged", "told", "other") for seed in range(3)]
        [field] = fields_of(runs, catalogue)
        board = score_field(field, catalogue)
        marked[task] = {score.row.method for score in board.scores if score.ungated}
        assert {row["method"] for row in board_rows(board) if row["judge"] == "own judge, no gate"} == marked[task]
        lines = [line for line in task_text(board).splitlines() if line.endswith("own judge, no gate")]
        assert len(lines) == len(marked[task])
    assert marked == {"open": {"judged"}, "gated": set(), "unknown": set()}
