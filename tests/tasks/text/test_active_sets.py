"""Active learning on IMDB and DBpedia-140k, on miniatures in the layout of the data hub."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.tasks.text.active_sets import Dbpedia140kActive, ImdbActive, balanced_subset
from selfbench.tasks.text.minilm import CLS, PAD, SEP, WIDTH

NAMES = ("imdb-active", "dbpedia-140k-active")
CLASSES = len(Dbpedia140kActive.classes)


def text(number: int, group: int) -> str:
    """A text of its own whose words tell its class."""
    return " ".join(f"w{1 + 4 * group + number // 4**place % 4}" for place in range(5))


def save_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_encoder(folder: Path) -> None:
    """A BERT of one layer as wide as MiniLM, and a tokenizer of whole words."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder.mkdir()
    vocabulary = {"[PAD]": PAD, "[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP} | {f"w{i}": i for i in range(1, 60)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"vocab_size": 120, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "max_position_embeddings": 64}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
    torch.manual_seed(0)
    save_file(BertModel(BertConfig(**shape), add_pooling_layer=False).state_dict(), folder / "model.safetensors")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with an encoder and both sets: 120 reviews and 30 articles a class, some of them twice."""
    save_encoder(tmp_path / "minilm")
    for part, numbers in (("train", range(60)), ("test", range(200, 220))):
        rows = [{"text": text(number, group), "label": group} for number in numbers for group in range(2)]
        save_rows(tmp_path / "text/imdb" / part, rows)
    for part, numbers in (("train", range(30)), ("test", range(200, 204))):
        rows = [
            {"label": group, "title": f"title {number}", "content": text(number, group)}
            for number in numbers
            for group in range(CLASSES)
        ]
        save_rows(tmp_path / "text/dbpedia-14" / part, rows)
    lines = []
    for name in ("imdb", "dbpedia-14", "minilm"):
        real = Data(tmp_path).describe(name)
        lines += [f"[{name}]", 'kind = "folder"', f'folder = "{real.folder or name}"']
        lines += [f'{key} = ""' for key in ("title", "licence", "homepage", "citation", "by_hand")]
        lines += [f'[[{name}.members]]\nname = "{member.name}"' for member in real.members]
    (tmp_path / "sets.toml").write_text("\n".join(lines))
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_budgets_and_strategies_are_those_of_the_other_sets(name: str) -> None:
    ends = ["", "-random", "-entropy", "-contrastive", "-225"]
    tasks = [registry.get("task", name + end).load() for end in ends]
    assert [task.start + task.rounds * task.query_size for task in tasks] == [130, 130, 130, 130, 225]
    for end, task in zip(ends, tasks, strict=True):
        other, own = (registry.get("task", of + end) for of in ("ag-news-active", name))
        for attribute in ("start", "rounds", "query_size", "strategy", "query_features", "validation_per_class"):
            assert getattr(task, attribute) == getattr(other.load(), attribute)
        for option in ("metric", "grants", "tags", "selection"):
            assert own.options[option] == other.options[option]
        # What is charged for the frozen encoder leaves as much for the rounds as on the smaller sets.
        pool = {"imdb-active": 25_000, "dbpedia-140k-active": 140_000}[name]
        assert own.options["budget"]["limit"] - pool == pytest.approx(
            other.options["budget"]["limit"] - 5_600, rel=2e-3
        )


@pytest.mark.parametrize("start", [30, 25])
@pytest.mark.parametrize("name", NAMES)
def test_the_start_set_is_balanced(name: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task = registry.get("task", name).load()()
    monkeypatch.setattr(type(task), "start", start)
    labels = np.arange(200 * task.n_classes) % task.n_classes

    class Folder(BundleFolder):
        facts = {"train_texts": 150 * task.n_classes}  # noqa: RUF012

        def private(self) -> dict[str, np.ndarray]:
            return {"labels": labels}

    split = task.split(Folder(Path()), 0)
    counts = np.bincount(labels[split.labeled], minlength=task.n_classes)
    assert counts.sum() == start
    assert counts.max() - counts.min() <= 1
    assert len(split.unlabeled) == 150 * task.n_classes - start - 5 * task.n_classes


def test_imdb_is_read_as_published(root: Path) -> None:
    train, test = ImdbActive().read(Data(root))
    assert Counter(label for label, _ in train) == {"negative": 60, "positive": 60}
    assert train[:2] == [("negative", text(0, 0)), ("positive", text(0, 1))]
    assert len(test) == 40


def test_dbpedia_takes_as_many_articles_of_each_class_without_their_titles(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dbpedia140kActive, "per_class", 20)
    task = Dbpedia140kActive()
    train, test = task.read(Data(root))
    assert Counter(label for label, _ in train) == dict.fromkeys(task.classes, 20)
    assert len(test) == 4 * CLASSES
    assert all(content.startswith("w") for _, content in train + test)
    assert train == task.read(Data(root))[0]
    monkeypatch.setattr(Dbpedia140kActive, "per_class", 31)
    message = r"dbpedia-14/train has 30 articles of the class 'company', of which 31 are drawn\. Fetch or place"
    with pytest.raises(DataMissing, match=message):
        task.read(Data(root))


def test_the_subset_is_that_of_one_seed_drawn_class_by_class() -> None:
    """`balanced_sampling` of small-text: numpy's global state, as many without replacement of each class in turn."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 40))
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(42)  # noqa: NPY002
    expected: list[int] = []
    for group in range(5):
        members = np.argwhere(labels == group)[:, 0]
        expected += np.random.choice(members, size=10, replace=False).tolist()  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    found = balanced_subset(labels, 10)
    assert found == sorted(expected)
    assert np.bincount(labels[found]).tolist() == [10] * 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "good"}, "row 2: it has no column 'label'"),
        ({"text": "good", "label": 2}, "row 2: 'label' is '2', expected one of 0, 1"),
        ({"text": " ", "label": 0}, "row 2: 'text' is empty"),
    ],
)
def test_bad_rows_are_named(root: Path, row: dict[str, Any], message: str) -> None:
    save_rows(root / "text/imdb/train", [{"text": "good", "label": 1}, row])
    with pytest.raises(DataMissing, match=rf"rows\.jsonl, {message}"):
        ImdbActive().read(Data(root))


@pytest.mark.parametrize(("task", "dataset"), [(ImdbActive(), "imdb"), (Dbpedia140kActive(), "dbpedia-14")])
def test_what_is_missing_is_named_with_what_to_type(tmp_path: Path, task: Any, dataset: str) -> None:
    message = (
        rf"text/{dataset}/train is missing\.\nType `selfbench data fetch {dataset}`.*\n"
        rf"By hand: put what is published at .*{dataset}/train"
    )
    with pytest.raises(DataMissing, match=message):
        task.read(Data(tmp_path))
    for part in ("train", "test"):
        (tmp_path / "text" / dataset / part).mkdir(parents=True)
    with pytest.raises(
        DataMissing, match=r"train has no file; expected files of one form of \.csv, \.jsonl, \.parquet"
    ):
        task.read(Data(tmp_path))


@pytest.mark.usefixtures("root")
def test_runs_in_worker_processes_buy_their_budget(at_work: Any) -> None:
    done = at_work.call("run", "-t", "small-dbpedia-active", "-m", "hast", "-s", "0")
    assert done.returncode == 0, done.stderr
    [dbpedia] = at_work.records(at_work.results)
    imdb = at_work.prove("small-imdb-active", "supervised")
    assert imdb.provenance.packages.keys() == {"numpy", "torch"}, "its vectors are part of the bundle"
    for record in (dbpedia, imdb):
        assert record.status == "ok"
        assert [point.x for point in record.curve] == [30, 40, 50]
        assert record.cost.labels == 50
        # The words tell the class.
        assert record.metrics["learning_curve_area"] > 0.9
    assert (dbpedia.n, imdb.n) == (4 * CLASSES, 40)
