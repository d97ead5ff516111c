"""Reuters R8, TREC and AG News with a few labels a class: on miniature files, and on the real ones where they lie."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.data_facts import data_facts, sentences
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.tasks.text import few_labels
from selfbench.tasks.text.ag_news import AgNewsFew
from selfbench.tasks.text.few_labels import FewLabels, without_repeats
from selfbench.tasks.text.frozen import FrozenVectors, ZeroHead
from selfbench.tasks.text.newsgroups import NewsgroupsFew
from selfbench.tasks.text.reuters_r8 import ReutersR8Few
from selfbench.tasks.text.trec import TrecFew

TASKS = [ReutersR8Few(), TrecFew(), AgNewsFew()]
REAL = {
    # task: training and test texts, removed for standing in the test part, contradicting, repeating
    "reuters-r8-few": (5415, 2189, 5, 10, 55),
    "trec-few": (5369, 500, 11, 0, 72),
    "ag-news-few": (5600, 2000, 0, 0, 0),
}


class Folder:
    """What `read` asks of `Data`, without digests."""

    def __init__(self, root: Path, **files: bytes) -> None:
        self.root = root
        for name, content in files.items():
            (root / name.replace("_", ".")).write_bytes(content)

    def file(self, dataset: str, member: str) -> Path:
        return self.root / member


def no_vectors(data: object, texts: list[str], length: int, tell: Callable[[str], None], encoder: str) -> object:
    return {"vectors": np.arange(len(texts), dtype=np.float32)[:, None]}, {"length": length}


def test_reuters_is_a_tab_file_with_three_header_lines(tmp_path: Path) -> None:
    head = b"Category\tText\nd\tstring\nclass\t\n\n"
    data = Folder(tmp_path, train_tab=head + b"earn\tprofit rises \nship\ta port\n", test_tab=head + b"acq\tbought\n")
    train, test = ReutersR8Few().read(data)  # type: ignore[arg-type]
    assert train == [("earn", "profit rises"), ("ship", "a port")]
    assert test == [("acq", "bought")]
    data = Folder(tmp_path, train_tab=head + b"earn\tprofit\nearned\tloss\n", test_tab=head)
    with pytest.raises(DataMissing, match=r"train\.tab, row 6: 'class' is 'earned'.*Did you mean 'earn'"):
        ReutersR8Few().read(data)  # type: ignore[arg-type]


def test_trec_has_a_number_and_a_question_a_line(tmp_path: Path) -> None:
    data = Folder(tmp_path, train_txt=b"0 What is an \xe9clair ?\n5 How far ?\n", test_txt=b"3 Who ?\n")
    train, test = TrecFew().read(data)  # type: ignore[arg-type]
    assert train == [("description", "What is an éclair ?"), ("number", "How far ?")]
    assert test == [("human", "Who ?")]
    for line, message in (
        (b"6 Who ?\n", "row 1: 'class' is '6', expected one of 0, 1, 2, 3, 4, 5"),
        (b"1\n", "row 1: it has no column 'question'"),
        (b"1  \n", "row 1: 'question' is empty"),
    ):
        with pytest.raises(DataMissing, match=message):
            TrecFew().read(Folder(tmp_path, train_txt=line, test_txt=b"3 Who ?\n"))  # type: ignore[arg-type]


def test_ag_news_is_split_within_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfbench.tasks.text.ag_news.TEST_PER_CLASS", 3)
    lines = [f'"{1 + number % 4}","title {number}","text {number}"' for number in range(40)]
    data = Folder(tmp_path, test_csv="\n".join(lines).encode())
    train, test = AgNewsFew().read(data)  # type: ignore[arg-type]
    assert (train, test) == AgNewsFew().read(data)  # type: ignore[arg-type]
    assert len(train) == 28
    assert {name: sum(label == name for label, _ in test) for name in AgNewsFew.classes} == dict.fromkeys(
        AgNewsFew.classes, 3
    )
    expected = {(AgNewsFew.classes[number % 4], f"title {number} text {number}") for number in range(40)}
    assert {*train, *test} == expected


def test_training_texts_that_stand_in_the_test_part_or_repeat_are_removed() -> None:
    train = [("a", "one"), ("a", "Two  words"), ("b", "three"), ("a", "two words"), ("a", "three"), ("b", "four")]
    test = [("b", "FOUR"), ("a", "five"), ("b", "five")]
    kept, removed = without_repeats(train, test)
    assert kept == [("a", "one"), ("a", "Two  words")]
    assert removed == {"train_in_test": 1, "train_contradicting": 2, "train_repeats": 1, "test_repeats": 1}


class Tiny(FewLabels):
    name = "tiny"
    classes = ("a", "b", "c")
    n_classes = 3
    length = 8

    def read(self, data: Data) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        train = [(name, f"{name} {number}") for name in self.classes for number in range(40)]
        return [*train, ("b", "a 0")], [(name, f"{name} test {number}") for name in self.classes for number in range(9)]


def test_the_bundle_keeps_texts_and_labels_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def listening(data: object, texts: list[str], *rest: object) -> object:
        seen[:] = texts
        return no_vectors(data, texts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(few_labels, "encode", listening)
    bundle = write_bundle(tmp_path / "tiny", Tiny().build(Data(tmp_path)))
    labels = bundle.private()["labels"]
    assert [Tiny.classes[label] for label in labels] == [text[0] for text in seen]
    assert "a 0" not in seen
    assert bundle.facts["train_texts"] == 119
    assert bundle.facts["train_contradicting"] == 2
    assert all("test" not in text for text in seen[:119])
    assert all("test" in text for text in seen[119:])
    assert sentences(data_facts(bundle.facts)) == [
        "0 training texts are also test texts",
        "0 training texts repeat another one",
        "2 training texts have two classes; left out of the training part",
        "0 test texts repeat another one",
    ]
    # In an order that tells no class.
    assert np.mean([a == b for a, b in itertools.pairwise(labels[:119])]) < 0.5


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FewLabels, BundleFolder]:
    """The real texts with numbers in place of vectors: encoding them takes minutes."""
    task = request.param
    needed = registry.get("task", task.name).options["data"][0]
    data = Data(data_folder())
    if not data.present(needed):
        pytest.skip(f"needs the data set {needed}: {data.how_to_get(needed).splitlines()[0]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_labels, "encode", no_vectors)
        return task, write_bundle(tmp_path_factory.mktemp("bundle") / task.name, task.build(data))


def test_the_real_texts_are_as_many_as_published(real: tuple[FewLabels, BundleFolder]) -> None:
    task, bundle = real
    facts = bundle.facts
    names = ("train_texts", "test_texts", "train_in_test", "train_contradicting", "train_repeats")
    assert tuple(facts[name] for name in names) == REAL[task.name]
    assert facts["classes"] == list(task.classes)
    said = sentences(data_facts(facts))[0]
    assert said.startswith(f"{facts['train_in_test']} training texts are also test texts")
    assert said.endswith("; left out of the training part") == bool(facts["train_in_test"])


def test_the_split_is_as_declared(real: tuple[FewLabels, BundleFolder]) -> None:
    task, bundle = real
    split, other = task.split(bundle, 0), task.split(bundle, 1)
    labels, n = bundle.private()["labels"], bundle.facts["train_texts"]
    for part in (split.labeled, split.validation):
        assert np.array_equal(np.bincount(labels[part]), [5] * task.n_classes)
    assert np.array_equal(split.labels, labels[split.labeled])
    assert np.array_equal(np.sort(np.concatenate([split.labeled, split.validation, split.unlabeled])), np.arange(n))
    assert np.array_equal(split.test, np.arange(n, len(labels)))
    assert not np.array_equal(split.labeled, other.labeled)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_views_are_those_of_newsgroups_few_and_the_head_begins_at_zero(task: FewLabels) -> None:
    entry = registry.get("task", task.name)
    assert entry.load() is type(task)
    assert "frozen-encoder" in entry.options["tags"]
    assert (task.recipe, task.cached_passes) == (ZeroHead.recipe, NewsgroupsFew.cached_passes)
    assert type(task).model is ZeroHead.model
    for name in ("inputs", "weak", "strong"):
        assert getattr(type(task), name) is getattr(NewsgroupsFew, name) is getattr(FrozenVectors, name)
    logits = task.model()(task.inputs({"vectors": np.ones((2, 384), np.float32)}, np.arange(2)))
    assert logits.tolist() == [[0.0] * task.n_classes] * 2


@pytest.mark.parametrize("name", ["reuters-r8-few", "trec-few", "ag-news-few"])
def test_other_numbers_of_labels_are_variants_whose_labels_lie_within_each_other(name: str) -> None:
    labels = np.arange(400) % registry.get("task", name).load().n_classes

    class Folder:
        def __init__(self) -> None:
            self.facts = {"train_texts": 300}

        def private(self) -> dict[str, np.ndarray]:
            return {"labels": labels}

    splits = [registry.get("task", name + end).load()().split(Folder(), 3) for end in ("-2", "", "-10")]
    for split, each in zip(splits, (2, 5, 10), strict=True):
        assert np.array_equal(np.bincount(labels[split.labeled]), [each] * (labels.max() + 1))
    two, five, ten = (set(split.labeled.tolist()) for split in splits)
    assert two < five < ten


def test_the_worst_class_is_scored() -> None:
    logits = np.eye(6)[[0, 1, 2, 2]]
    scores = TrecFew().score(logits, np.array([0, 1, 2, 3]))
    assert scores.metrics["accuracy"] == 0.75
    assert scores.metrics["worst_group_error"] == 1.0
    assert scores.groups["error"]["human"] == 1.0


def test_the_task_files_are_apart() -> None:
    """A change of one task must not make the bundles of the others anew."""
    files = {os.fspath(registry.get("task", task.name).file) for task in TASKS}
    assert len(files) == len(TASKS)
