"""The committed records are whole, complete, and are what the committed board shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.board.export import json_text, suite_data
from selfbench.suite.board.suites import score_suite
from selfbench.suite.record import Record
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import load_suite

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
COMMITTED = ("quick", "small")


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    with Store(RESULTS).index() as index:
        assert not index.broken()
        return {record.run_id: record for record in index.records()}


@pytest.mark.parametrize("suite", COMMITTED)
def test_every_run_of_the_suite_is_there(suite: str, records: dict[str, Record]) -> None:
    missing = [spec.label for spec in load_suite(suite).specs if spec.run_id not in records]
    assert not missing


def test_records_come_from_committed_code(records: dict[str, Record]) -> None:
    for record in records.values():
        assert record.provenance.git_commit, record.run_id
        assert record.provenance.git_dirty is False, f"{record.run_id} was run from changed files"


def test_records_name_registered_methods_and_tasks_in_their_versions(records: dict[str, Record]) -> None:
    methods, tasks = registry.entries("method"), registry.entries("task")
    for record in records.values():
        spec: RunSpec = record.spec
        assert methods[spec.method.name].version == spec.method.version
        assert tasks[spec.task.name].version == spec.task.version


@pytest.mark.parametrize("suite", COMMITTED)
def test_the_committed_board_is_what_the_records_give(suite: str) -> None:
    with Store(RESULTS).index() as index:
        runs = index.summaries()
    made = json_text(suite_data(score_suite(load_suite(suite), runs, Catalogue.registered())))
    assert made == (ROOT / "docs" / "board" / f"{suite}.json").read_text(encoding="utf-8")
