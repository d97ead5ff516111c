"""What training and test part share is counted by the task, kept in the record, and said on the task's page."""

from __future__ import annotations

import json
from pathlib import Path

from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.data_facts import DATA_FACTS, data_facts, sentences
from selfbench.suite.record import Record, decode, encode
from selfbench.suite.render import build_site
from selfbench.suite.spec import TaskRef
from selfbench.suite.store import Store


def test_only_declared_numbers_are_kept_and_those_of_domains_are_summed() -> None:
    facts = {
        "classes": ["a", "b"],
        "encode_seconds": 12.5,
        "train_in_test": 11,
        "pool_in_test": "many",
        "test_repeats": True,
        "left_out": {"tweets": {"repeated": 120, "in_dead_zone": 768}, "editorials": {"repeated": 145}},
    }
    assert data_facts(facts) == {"train_in_test": 11, "repeated": 265}
    assert json.dumps(data_facts(facts)) == '{"train_in_test": 11, "repeated": 265}'
    assert data_facts({}) == {}


def test_numbers_are_said_in_plain_words() -> None:
    assert sentences({"train_in_test": 1, "train_repeats": 0, "pool_in_test": 1234}) == [
        "1 training text is also a test text; left out of the training part",
        "0 training texts repeat another one",
        "1,234 unlabelled sentences are also test sentences; left as published",
    ]
    assert sentences({"later_on": 2.5, "train_repeats": 2}) == [
        "2 training texts repeat another one; left out of the training part",
        "later on: 2.5",
    ]
    assert len({fact.many for fact in DATA_FACTS.values()}) == len(DATA_FACTS)


def page_of(store: Store, folder: Path, task: str, catalogue: Catalogue) -> str:
    with store.index() as index:
        build_site(index, [], folder, catalogue=catalogue)
    return (folder / "tasks" / f"{task}.html").read_text(encoding="utf-8")


def test_the_label_correlation_of_a_stream_stands_in_record_and_page(campaign, tmp_path: Path) -> None:
    first, second = campaign("toy-stream", "source", seeds=(0, 1)).finished
    found = [record.diagnostics["label_correlation"] for record in (first, second)]
    assert all(abs(value) < 0.1 for value in found)
    assert found[0] != found[1], "that of the run's own order"
    catalogue = Catalogue.registered()
    page = page_of(Store(tmp_path / "results"), tmp_path / "site", "toy-stream", catalogue)
    assert f"<dt>Label correlation</dt><dd>{sum(found) / 2:.2f}: " in page

    old = tmp_path / "old"
    Store(old).write(Record.model_validate(first.model_dump(mode="json") | {"diagnostics": {}}))
    assert "Label correlation" not in page_of(Store(old), tmp_path / "old-site", "toy-stream", catalogue)


def test_a_task_with_overlap_says_so_in_record_and_page(campaign, tmp_path: Path) -> None:
    [record] = campaign("toy-adaptation", "supervised").finished
    assert record.data_facts == {"train_in_test": 11, "train_repeats": 0}
    assert decode(encode(record)).data_facts == record.data_facts
    assert record.results()["data_facts"] == record.data_facts

    catalogue = Catalogue.registered()
    page = page_of(Store(tmp_path / "results"), tmp_path / "site", "toy-adaptation", catalogue)
    assert "<li>11 training texts are also test texts; left out of the training part</li>" in page
    assert "<li>0 training texts repeat another one</li>" in page

    # A record of before the field is as valid, and its page says nothing until another one on the same data does.
    store = Store(tmp_path / "other")
    data = record.model_dump(mode="json")
    del data["data_facts"]
    before = Record.model_validate(data)
    assert before.data_facts == {}
    store.write(before)
    assert "Shared and repeated" not in page_of(store, tmp_path / "one", "toy-adaptation", catalogue)
    spec = record.spec.model_copy(update={"task": TaskRef(name="toy-active", version="1")})
    store.write(record.model_copy(update={"spec": spec, "run_id": spec.run_id}))
    for task in ("toy-adaptation", "toy-active"):
        assert "<li>11 training texts are also" in page_of(store, tmp_path / "two", task, catalogue)
