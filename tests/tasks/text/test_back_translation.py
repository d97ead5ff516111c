"""Views by back-translation: the two layouts in miniature, their faults, and methods that train with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.protocols.adaptation import AdaptationTask
from selfbench.tasks.text.back_translation import (
    TranslatedTokens,
    TranslatedVectors,
    one_of,
    read_aligned,
    read_usb,
)

from .conftest import save_rows

MOODS = ("negative", "positive")
WORDS = ("it", "was", "this", "is", "a", "the", "film", "plot")
ADJECTIVES = (("bad", "dull", "poor", "awful"), ("good", "fine", "great", "new"))
N = 80
MARKS = ("?", ",")
"""Words that stand in translations alone, of the one and of the other version."""


def sentence(number: int) -> str:
    """Texts that all differ, of two classes and different lengths."""
    rest = [WORDS[(number // 4**place) % 8] for place in range(2 + number % 5)]
    return " ".join([ADJECTIVES[number % 2][number // 2 % 4], *rest])


def back(text: str, version: int) -> str:
    """What stands for a translation: the words in another order, and a word that no text has."""
    return " ".join([*reversed(text.split()), MARKS[version]])


def usb_entries(numbers: range, versions: int = 2) -> dict[str, dict[str, str]]:
    return {
        str(at): {
            "ori": sentence(number),
            **{f"aug_{version}": back(sentence(number), version) for version in range(versions)},
            "label": str(1 - number % 2),
        }
        for at, number in enumerate(numbers)
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: Callable[..., dict[str, int]]) -> Path:
    letters(tmp_path / "bert-base-uncased")
    folder = tmp_path / "text/usb/aclImdb"
    folder.mkdir(parents=True)
    # As the script of USB writes them.
    (folder / "train.json").write_text(json.dumps(usb_entries(range(N)), indent=4))
    (folder / "test.json").write_text(json.dumps(usb_entries(range(1000, 1030), versions=0), indent=4))
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    return tmp_path


def task(name: str) -> Any:
    return registry.get("task", name).load()()


def words(ids: torch.Tensor, vocabulary: dict[str, int]) -> str:
    """The text of token ids (L,), without marks and padding."""
    name = {number: name for name, number in vocabulary.items()}
    return " ".join(name[token] for token in ids.tolist() if token > 4).replace(" ##", "")


def test_the_files_of_usb(root: Path) -> None:
    found = list(read_usb(root / "text/usb/aclImdb/train.json", MOODS[::-1], 2))
    assert len(found) == N
    for number, item in enumerate(found):
        text = sentence(number)
        assert item == (MOODS[number % 2], text, (back(text, 0), back(text, 1)))
    one = task("usb-imdb-10-back-translation")
    # Reviews that USB numbers 0 are the positive ones.
    assert one.read(Data(root))[0] == [(item.label, item.text) for item in found]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aug_1": ""}, "row 3: 'aug_1' of entry '2' is '', expected a text"),
        ({"aug_0": None}, "row 3: 'aug_0' of entry '2' is 'None'"),
        ({"ori": 7}, "row 3: 'ori' of entry '2' is '7'"),
        ({"label": "2"}, "row 3: 'label' of '2' is '2', expected 0 to 1"),
    ],
)
def test_faults_of_usb_files_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path, entries = tmp_path / "train.json", usb_entries(range(5))
    entries["2"] |= change
    path.write_text(json.dumps(entries))
    with pytest.raises(DataMissing, match=rf"train\.json, {message}"):
        list(read_usb(path, MOODS, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no entries"),
        ("{}", "holds no entries"),
        ('{"0": "good"}', "row 1: entry '0' is no JSON object"),
        ('{"0": {}, "0": {}}', "is no JSON .the key '0' comes twice"),
        ('{"0": ', "is no JSON"),
    ],
)
def test_files_that_are_none_of_usb(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataMissing, match=message):
        list(read_usb(tmp_path / "train.json", MOODS, 2))
    with pytest.raises(DataMissing, match="cannot be read"):
        list(read_usb(tmp_path / "none.json", MOODS, 2))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_beside_the_texts(tmp_path: Path, form: str) -> None:
    texts = [sentence(number) for number in range(6)]
    rows = [{"id": at, "text": text.upper(), "aug_0": back(text, 0)} for at, text in enumerate(texts, 1)]
    save_rows(tmp_path, form, rows)
    assert read_aligned(tmp_path, texts, 1) == {text: (back(text, 0),) for text in texts}
    with pytest.raises(DataMissing, match=rf"rows\.{form}, row .: it has no column 'aug_1'"):
        read_aligned(tmp_path, texts, 2)
    with pytest.raises(DataMissing, match=r"ends after row 6, but there are 7 texts: 'good' has no translation"):
        read_aligned(tmp_path, [*texts, "good"], 1)
    with pytest.raises(DataMissing, match=rf"rows\.{form}, row [67]: it is one too many: there are 5 texts"):
        read_aligned(tmp_path, texts[:5], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aug_0": " "}, "row 3: 'aug_0' is empty"),
        ({"id": 9}, "row 3: 'id' is '9', expected 3: rows stand in the order of the texts"),
        ({"text": "dull"}, "row 3: 'text' is 'dull', but text 3 is '"),
    ],
)
def test_rows_that_are_not_those_of_the_texts(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    texts = [sentence(number) for number in range(6)]
    rows = [{"id": at, "text": text, "aug_0": back(text, 0)} for at, text in enumerate(texts, 1)]
    rows[2] |= change
    save_rows(tmp_path, "jsonl", rows)
    with pytest.raises(DataMissing, match=rf"rows\.jsonl, {message}"):
        read_aligned(tmp_path, texts, 1)


def test_one_of_several_is_drawn_for_each_example() -> None:
    versions = torch.arange(3).expand(600, 3)[:, :, None]
    drawn = one_of(versions, torch.Generator().manual_seed(0))
    assert drawn.shape == (600, 1)
    assert torch.bincount(drawn.flatten()).tolist() == pytest.approx([200, 200, 200], abs=50)
    assert torch.equal(drawn, one_of(versions, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["fixmatch", "uda", "softmatch"])
def test_methods_train_with_the_translations(
    root: Path, tmp_path: Path, play: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = json.loads((root / "bert-base-uncased/tokenizer.json").read_text())["model"]["vocab"]
    one = task("usb-imdb-10-back-translation")
    bundle = one.build(Data(root))
    assert set(bundle.public) == {"tokens", "offsets", "translated_tokens", "translated_offsets"}
    assert bundle.public["translated_offsets"].shape == (2, bundle.facts["train_texts"] + 1)
    folder = write_bundle(tmp_path / "bundle", bundle)
    method = registry.get("method", name).load()()
    passed, strong, seen = type(method).loss, [0, 0], 0

    def watched(self: Any, labeled: Any, unlabeled: Any) -> Any:
        nonlocal seen
        for batch in (labeled, unlabeled):
            assert torch.equal(batch.weak, batch.x)
            for text, translated in zip(batch.x, batch.strong, strict=True):
                versions = [back(words(text, vocabulary), version) for version in range(2)]
                strong[versions.index(words(translated, vocabulary))] += 1
                seen += 1
        return passed(self, labeled, unlabeled)

    monkeypatch.setattr(type(method), "loss", watched)
    forwarded: list[torch.Tensor] = []
    original = type(one).model

    def model(self: Any) -> Any:
        made = original(self)
        made.register_forward_pre_hook(lambda _, inputs: forwarded.append(inputs[0]))
        return made

    monkeypatch.setattr(type(one), "model", model)
    outcome = play(method, one, folder, limit=600.0, name=name)
    assert 0.0 <= outcome.metrics["accuracy"] <= 1.0
    assert seen > 30
    assert min(strong) > seen / 4
    # What the model is trained on are the translations: a mark that no text has stands in the batches.
    marks = torch.tensor([vocabulary[mark] for mark in MARKS])
    assert any(torch.isin(ids, marks).any() for ids in forwarded)


def test_other_labels_give_the_same_public_arrays(root: Path) -> None:
    first = task("usb-imdb-10-back-translation").build(Data(root))
    entries = usb_entries(range(N))
    for entry in entries.values():
        entry["label"] = str(1 - int(entry["label"]))
    (root / "text/usb/aclImdb/train.json").write_text(json.dumps(entries))
    second = task("usb-imdb-10-back-translation").build(Data(root))
    for name, array in first.public.items():
        np.testing.assert_array_equal(array, second.public[name])
    assert not np.array_equal(first.private["labels"], second.private["labels"])


def test_other_translations_are_another_bundle(root: Path, tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "first", task("usb-imdb-10-back-translation").build(Data(root)))
    entries = usb_entries(range(N))
    entries["5"]["aug_1"] = "fine film"
    (root / "text/usb/aclImdb/train.json").write_text(json.dumps(entries))
    second = write_bundle(tmp_path / "second", task("usb-imdb-10-back-translation").build(Data(root)))
    assert first.sha256 != second.sha256
    plain = registry.get("task", "imdb-10-finetune").load()
    assert plain.strong_inputs is AdaptationTask.strong_inputs


class Folder:
    """What a task asks of `Data`, without digests."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, dataset: str, member: str) -> Path:
        return self.root / dataset / member


def test_vectors_of_both(tmp_path: Path, play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the frozen track: the strong view of a question is the vector of its translation."""
    kinds = [(number % 6, f"{WORDS[number % 6]} number {number} ?") for number in range(90)]
    (tmp_path / "trec").mkdir()
    (tmp_path / "trec/train.txt").write_text("".join(f"{kind} {text}\n" for kind, text in kinds))
    (tmp_path / "trec/test.txt").write_text("".join(f"{kind} other {text}\n" for kind, text in kinds[:30]))
    rows = [{"id": at, "text": text, "aug_0": f"back {text}"} for at, (_, text) in enumerate(kinds, 1)]
    save_rows(tmp_path / "trec-back-translation/back-translation", "csv", rows)

    def vector(text: str) -> np.ndarray:
        made = np.random.default_rng([ord(letter) for letter in text]).normal(size=384).astype(np.float32)
        return made / np.linalg.norm(made)

    def encode(data: object, texts: list[str], *rest: object) -> Any:
        return {"vectors": np.stack([vector(text) for text in texts])}, {}

    for module in ("few_labels", "back_translation"):
        monkeypatch.setattr(f"selfbench.tasks.text.{module}.encode", encode)
    one = task("trec-few-back-translation")
    bundle = one.build(Folder(tmp_path))
    assert bundle.public["translated_vectors"].shape == (1, 90, 384)
    texts = [text for _, text in one.texts(Folder(tmp_path))[0]][:90]
    strong = one.strong(one.strong_inputs(bundle.public, np.arange(90)), torch.Generator())
    np.testing.assert_array_equal(strong.numpy(), np.stack([vector(f"back {text}") for text in texts]))
    np.testing.assert_array_equal(
        one.inputs(bundle.public, np.arange(90)).numpy(), np.stack([vector(text) for text in texts])
    )
    folder = write_bundle(tmp_path / "bundle", bundle)
    for name in ("fixmatch", "uda"):
        passes = play(registry.get("method", name).load()(), one, folder, limit=3000.0, name=name)
        assert 0.0 <= passes.metrics["accuracy"] <= 1.0


def test_what_is_declared() -> None:
    """Every task whose strong views are translations says so by its name, its views and its data."""
    entries = {name: entry for name, entry in registry.entries("task").items() if entry.protocol == "adaptation"}
    named = {name for name in entries if name.endswith("-back-translation")}
    assert len(named) == 17
    for name in named:
        cls: Any = entries[name].load()
        assert issubclass(cls, TranslatedTokens | TranslatedVectors)
        assert cls.views == "back-translation"
        assert any(
            data.startswith("usb-") or data.endswith("-back-translation") for data in entries[name].options["data"]
        )
        if issubclass(cls, TranslatedVectors):
            assert cls.cached_passes == 1.0 + cls.versions
        if name.startswith("usb-"):
            source = cls.source.removesuffix("-full")
            assert name == f"usb-{source}-{cls.labeled_per_class}-back-translation"
            assert entries[name].options["data"] == (f"usb-{source}", cls.encoder)
            assert entries[name].options["bundle"] == f"usb-{source}-{cls.encoder}"
