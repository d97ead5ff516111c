"""The audit of the 20 Newsgroups tasks: on miniature files of the same form, and on the real ones where they lie."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.tasks.text import frozen, newsgroups
from selfbench.tasks.text.frozen import drop_features
from selfbench.tasks.text.newsgroups import NewsgroupsFew, NewsgroupsFewFinetune, choose, read_texts

CLASSES = [f"group.{number:02d}" for number in range(20)]


def texts_of(part: str, per_class: int) -> list[tuple[str, str]]:
    return [(name, f"{part} text {number} of {name}") for name in CLASSES for number in range(per_class)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newsgroups, "TRAIN_PER_CLASS", 12)
    monkeypatch.setattr(newsgroups, "TEST_PER_CLASS", 4)


HEAD = b"class\ttext\nd\tstring\nclass\tmeta\n\n"


def test_tab_files_have_three_header_lines(tmp_path: Path) -> None:
    file = tmp_path / "train.tab"
    # A line ends where its file says so, not at the other characters that Unicode takes for an end.
    texts = ["a car\twith a tab ", "two\u2028lines\x85or\x0bthree"]
    file.write_bytes(HEAD + "".join(f"rec.autos\t{text}\n" for text in texts).encode())
    assert read_texts(file) == [("rec.autos", text) for text in texts]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"rec.auto\ta car\n", r"row 6: 'class' is 'rec.auto', expected one of alt.*Did you mean 'rec.autos'"),
        (b"sci.med\t \n", "row 6: 'text' is empty"),
        (b"no tab\n", r"row 6: it has no column 'text' \(1 of 2 columns\)"),
        (b"sci.med\tcaf\xe9\n", "row 6: byte 0xe9 in column 12 is not utf-8"),
    ],
    ids=["class", "text", "tab", "encoding"],
)
def test_what_is_wrong_is_said_with_file_and_row(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "train.tab"
    file.write_bytes(HEAD + b"sci.med\tpill\n" + line)
    with pytest.raises(DataMissing, match=rf"train\.tab, {message}"):
        read_texts(file)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("lacking", "said"), [("train", "the training part 11 "), ("test", "the test part 3 ")])
def test_too_few_texts_are_an_error(lacking: str, said: str) -> None:
    parts = {"train": texts_of("train", 12), "test": texts_of("test", 4)}
    assert len(choose(parts["train"], parts["test"], CLASSES)) == 20 * 16
    del parts[lacking][0]
    with pytest.raises(DataMissing, match=rf"of {said}texts of 'group\.00' are left that occur once"):
        choose(parts["train"], parts["test"], CLASSES)


@pytest.mark.usefixtures("small")
def test_the_subset_is_fixed_balanced_and_holds_no_text_twice() -> None:
    train, test = texts_of("train", 15), texts_of("test", 6)
    chosen = choose(train, test, CLASSES)
    assert chosen == choose(train, test, CLASSES)
    first, second = chosen[: 20 * 12], chosen[20 * 12 :]
    assert len(second) == 20 * 4
    for part, per_class, source in ((first, 12, train), (second, 4, test)):
        assert set(part) <= set(source)
        assert {name: sum(label == name for label, _ in part) for name in CLASSES} == dict.fromkeys(CLASSES, per_class)
    assert len({text for _, text in chosen}) == len(chosen)
    # In an order that tells no class.
    assert np.mean([a[0] == b[0] for a, b in itertools.pairwise(first)]) < 0.15


@pytest.mark.usefixtures("small")
def test_texts_posted_to_two_groups_or_in_both_parts_are_left_out() -> None:
    train, test = texts_of("train", 15), texts_of("test", 6)
    train[0] = (train[0][0], "posted twice")
    train[15] = (train[15][0], "posted twice")
    test[0] = (test[0][0], train[1][1])
    assert {"posted twice", train[1][1]}.isdisjoint(text for _, text in choose(train, test, CLASSES))


def test_views_of_sentence_vectors_have_length_one_and_the_declared_share() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(64, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    task = NewsgroupsFew()
    weak = task.weak(vectors, torch.Generator().manual_seed(1))
    strong = task.strong(vectors, torch.Generator().manual_seed(1))
    for view in (weak, strong):
        torch.testing.assert_close(view.norm(dim=1), torch.ones(64))
    assert (weak == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert ((weak * vectors).sum(1) > (strong * vectors).sum(1)).all()
    torch.testing.assert_close(drop_features(vectors, torch.Generator(), share=0.0, noise=0.0), vectors)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """The real texts with small random vectors: encoding them takes minutes."""
    data = Data(data_folder())
    if not (data.present("newsgroups") and data.present("minilm")):
        pytest.skip("needs the data sets newsgroups and minilm: `selfbench data fetch newsgroups minilm`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "embed", lambda encoder, ids, **_: np.zeros((len(ids), 4), np.float32))
        return write_bundle(tmp_path_factory.mktemp("bundle") / "newsgroups", NewsgroupsFew().build(data))


def test_public_arrays_hold_texts_and_no_label(bundle: BundleFolder) -> None:
    public = bundle.public()
    assert set(public) == {"ids", "vectors"}
    assert public["ids"].shape == (7000, 128)
    assert len(np.unique(public["ids"], axis=0)) > 6950
    labels = bundle.private()["labels"]
    for part in (labels[:5000], labels[5000:]):
        assert len(set(np.bincount(part))) == 1
        assert 0.03 < np.mean(part[1:] == part[:-1]) < 0.07


@pytest.mark.parametrize("task", [NewsgroupsFew(), NewsgroupsFewFinetune()])
def test_the_split_is_as_declared(bundle: BundleFolder, task: NewsgroupsFew) -> None:
    split, other = task.split(bundle, 0), task.split(bundle, 1)
    labels = bundle.private()["labels"]
    assert [len(part) for part in (split.labeled, split.validation, split.unlabeled, split.test)] == [
        100,
        100,
        4800,
        2000,
    ]
    assert np.array_equal(np.bincount(labels[split.labeled]), [5] * 20)
    assert np.array_equal(split.labels, labels[split.labeled])
    assert np.array_equal(np.sort(np.concatenate([split.labeled, split.validation, split.unlabeled])), np.arange(5000))
    assert np.array_equal(split.test, np.arange(5000, 7000))
    assert not np.array_equal(split.labeled, other.labeled)


def test_both_tracks_are_registered_apart_on_one_bundle() -> None:
    frozen, tuned = (registry.get("task", name) for name in ("newsgroups-few", "newsgroups-few-finetune"))
    assert (frozen.load(), tuned.load()) == (NewsgroupsFew, NewsgroupsFewFinetune)
    assert frozen.options["bundle"] == tuned.options["bundle"]
    assert "frozen-encoder" in frozen.options["tags"]
    assert NewsgroupsFew.cached_passes == 1.0
