"""Named entities across languages, on miniatures in the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.oracle_labels import OracleLabels
from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.prokd import ProKD
from selfbench.suite import registry
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, MethodError
from selfbench.suite.metrics import METRICS
from selfbench.tasks.text.encoders import TextEncoder, Tokens
from selfbench.tasks.text.entities import as_iob2, score_entities, spans, tag_names
from selfbench.tasks.text.ner import NO_TAG, TokenTagger, sentence_tokens
from selfbench.tasks.text.tagged import read_tagged

TYPES = ("PER", "ORG", "LOC", "MISC")
NAMES = tag_names(TYPES)
ENCODER = "bert-base-multilingual-cased"
ENGLISH = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O
. . O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

"""
DUTCH = """-DOCSTART- -DOCSTART- O
Jan N B-PER
Peeters N I-PER
woont V O
in Prep O
Gent N B-LOC
. Punc O

Hij Pron O
"""


def numbers(tags: str) -> np.ndarray:
    return np.array([NAMES.index(tag) for tag in tags.split()])


def conlleval(true: list[list[str]], predicted: list[list[str]]) -> tuple[int, int, int]:
    """Right, found and true chunks, word by word with a chunk open on each side, as the script of the shared task."""

    def part(tag: str) -> tuple[str, str]:
        mark, _, kind = tag.partition("-")
        return mark, kind

    def starts(before: str, tag: str) -> bool:
        (mark, kind), (mark_before, kind_before) = part(tag), part(before)
        return mark == "B" or (mark == "I" and (mark_before == "O" or kind_before != kind))

    def ends(before: str, tag: str) -> bool:
        (mark, kind), (mark_before, kind_before) = part(tag), part(before)
        return mark_before != "O" and (mark in "BO" or kind_before != kind)

    right = found = there = 0
    open_right = False
    words = [pair for own in zip(true, predicted, strict=True) for pair in (*zip(*own, strict=True), ("O", "O"))]
    before = ("O", "O")
    for pair in [*words, ("O", "O")]:
        true_ends, found_ends = (ends(one, two) for one, two in zip(before, pair, strict=True))
        if open_right:
            if true_ends and found_ends:
                right += 1
                open_right = False
            elif true_ends != found_ends or part(pair[0])[1] != part(pair[1])[1]:
                open_right = False
        true_starts, found_starts = (starts(one, two) for one, two in zip(before, pair, strict=True))
        if true_starts and found_starts and part(pair[0])[1] == part(pair[1])[1]:
            open_right = True
        there += true_starts
        found += found_starts
        before = pair
    return right, found, there


def test_spans_of_both_schemes() -> None:
    assert spans(numbers("O B-PER I-PER B-PER O I-LOC I-ORG I-ORG")).tolist() == [
        [1, 2, 0], [3, 3, 0], [5, 5, 2], [6, 7, 1],
    ]  # fmt: skip
    assert as_iob2(numbers("I-PER I-PER B-PER O I-LOC")).tolist() == numbers("B-PER I-PER B-PER O B-LOC").tolist()
    assert spans(numbers("O O")).shape == (0, 3)


def test_scores_are_those_of_a_loop_that_keeps_a_chunk_open() -> None:
    random = np.random.default_rng(0)
    for length in (1, 2, 5, 9):
        true = random.integers(0, 9, (60, length)) * (random.random((60, length)) < 0.6)
        predicted = np.where(random.random(true.shape) < 0.8, true, random.integers(0, 9, true.shape))
        words = [[[NAMES[tag] for tag in row] for row in rows] for rows in (true, predicted)]
        right, found, there = conlleval(*words)
        assert 0 < right < min(found, there)
        padded = [np.pad(rows, ((0, 0), (0, 1))) for rows in (predicted, true)]
        scores = score_entities(*padded, TYPES)
        assert scores.metrics["entity_precision"] == pytest.approx(right / found, abs=1e-12)
        assert scores.metrics["entity_recall"] == pytest.approx(right / there, abs=1e-12)
        assert scores.metrics["entity_f1"] == pytest.approx(2 * right / (found + there), abs=1e-12)
        for at, name in enumerate(TYPES):
            of_type = [[[tag if tag.endswith(f"-{name}") else "O" for tag in row] for row in rows] for rows in words]
            own = conlleval(*of_type)
            assert scores.groups["entity_f1"][TYPES[at]] == pytest.approx(2 * own[0] / (own[1] + own[2]), abs=1e-12)


def test_nothing_found_and_nothing_there_is_no_success() -> None:
    nothing, one = np.zeros((1, 3), int), np.array([[1, 2, 0]])
    for predicted, true in ((nothing, nothing), (one, nothing), (nothing, one)):
        assert score_entities(predicted, true, TYPES).metrics["entity_f1"] == 0.0
    assert score_entities(one, one, TYPES).metrics == {
        "entity_f1": 1.0, "entity_precision": 1.0, "entity_recall": 1.0, "token_accuracy": 1.0,
    }  # fmt: skip


def test_columns_are_read_in_both_schemes_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "eng.train").write_text(ENGLISH)
    first, second = read_tagged(tmp_path / "eng.train", TYPES)
    assert first.words == ("EU", "rejects", "German", "call", ".")
    assert [NAMES[tag] for tag in first.tags] == ["B-ORG", "O", "B-MISC", "O", "O"]
    assert [NAMES[tag] for tag in second.tags] == ["B-PER", "I-PER"]
    (tmp_path / "ned.train").write_text(DUTCH)
    assert [len(item.words) for item in read_tagged(tmp_path / "ned.train", TYPES)] == [6, 1]
    for encoding in ("utf-8", "latin-1"):
        (tmp_path / "esp.train").write_bytes("El DA O\nAño\xa01 NC B-ORG\r\n \n".encode(encoding))
        [only] = read_tagged(tmp_path / "esp.train", TYPES)
        assert only == (("El", "Año\xa01"), (0, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"EU NNP I-ORG\nGerman JJ\n", r"row 2: it has 2 columns, expected 3 as in the first line"),
        (b"EU\n", r"row 1: it has 1 columns, expected a word and its tag at least"),
        (b"EU I-ORG\n\nBonn I-LOK\n", r"row 3: its tag is 'I-LOK', expected one of O, B-PER, .*I-MISC\. Did you mean"),
        (b"EU E-ORG\n", r"row 1: its tag is 'E-ORG', expected one of"),
        (b"\n\n-DOCSTART- O\n\n", r"eng.train has no sentence"),
        (b"", r"eng.train is empty"),
        ("EU I-ORG\n".encode("utf-16"), r"row 1: it holds a zero byte"),
        (b"x" * 1_000_001 + b" O\n", r"row 1: the line is longer than 1,000,000 bytes"),
    ],
)
def test_bad_columns_are_named_with_their_row(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "eng.train").write_bytes(content)
    with pytest.raises(DataMissing, match=message):
        read_tagged(tmp_path / "eng.train", TYPES)


def save_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"tokens": pyarrow.list_(pyarrow.string()), "ner_tags": pyarrow.list_(pyarrow.int64())}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.list_(pyarrow.string()))) for name in rows[0]])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    save_parquet(path, [{"tokens": ["R.", "H.", "lives"], "ner_tags": [3, 4, 0], "langs": ["en"] * 3, "spans": []}])
    assert read_tagged(path, TYPES[:3]) == [(("R.", "H.", "lives"), (3, 4, 0))]
    good = {"tokens": ["a"], "ner_tags": [0]}
    for row, message in (
        ({"tokens": [], "ner_tags": []}, r"00001\.parquet, row 2: its sentence is empty"),
        ({"tokens": None, "ner_tags": None}, "row 2: its sentence is empty"),
        ({"tokens": ["a", "b"], "ner_tags": [0]}, "row 2: it has 2 words and 1 tags"),
        ({"tokens": ["a"], "ner_tags": [7]}, "row 2: one of its tags is 7, expected 0 to 6"),
        ({"tokens": [None], "ner_tags": [0]}, "row 2: one of its words is None"),
    ):
        save_parquet(path, [good, row])
        with pytest.raises(DataMissing, match=message):
            read_tagged(path, TYPES[:3])
    save_parquet(path, [{"tokens": ["a"], "langs": ["en"]}])
    with pytest.raises(DataMissing, match=r"has no column 'ner_tags' \(it has: tokens, langs\)"):
        read_tagged(path, TYPES[:3])
    path.write_bytes(b"nothing")
    with pytest.raises(DataMissing, match="cannot be read as parquet"):
        read_tagged(path, TYPES[:3])


PLACES = ("bonn", "gent", "lyon")
PEOPLE = ("anna", "peter", "jan")


def column_file(n: int, draw: np.random.Generator, scheme: str = "B") -> str:
    """Sentences of two people, a place and words, whose names tell what they are."""
    lines = []
    for _ in range(n):
        first, second = draw.choice(PEOPLE, 2)
        words = [
            (first, f"{scheme}-PER"), (second, "I-PER"), (draw.choice(["was", "is"]), "O"), ("in", "O"),
            (draw.choice(PLACES), f"{scheme}-LOC"), (f"0{draw.integers(1000)}", "O"),
        ]  # fmt: skip
        lines += [f"{word} x {tag}" for word, tag in words] + [""]
    return "\n".join(lines) + "\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: Callable[..., Any]) -> Path:
    """English with IOB1, Spanish and Dutch with IOB2, WikiAnn in parquet, and an encoder of letters."""
    letters(tmp_path / ENCODER)
    draw = np.random.default_rng(0)
    for folder, stem, scheme in (
        ("text/conll-2003", "eng", "I"), ("conll-2002-es", "esp", "B"), ("conll-2002-nl", "ned", "B"),
    ):  # fmt: skip
        for part, n in (("train", 40), ("testa", 8), ("testb", 12)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{stem}.{part}").write_text(column_file(n, draw, scheme))
    for language in ("en", "ar"):
        for part in ("train", "validation", "test"):
            rows = [
                {"tokens": [str(draw.choice(PEOPLE)), "is", str(draw.choice(PLACES))], "ner_tags": [1, 0, 5]}
                for _ in range(6)
            ]
            save_parquet(tmp_path / "text/wikiann" / language / f"{part}-00000-of-00001.parquet", rows)
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    return tmp_path


def miniature(name: str, **changes: Any) -> Any:
    """The task with sentences of 24 tokens."""
    cls: Any = registry.get("task", name).load()
    own = {"length": 24, "frozen_layers": 1, "evaluation_batch": 5, **changes}
    made = type(cls.__name__, (cls,), own)
    made.__selfbench__ = cls.__selfbench__
    return made()


@pytest.fixture
def data(root: Path) -> Data:
    """The data folder, described as the project does, but for the digests of other files of the same names."""
    lines = []
    for name in ("conll-2003-en", "conll-2002-es", "conll-2002-nl", "wikiann-en", "wikiann-ar", ENCODER):
        real = Data(root).describe(name)
        lines += [f"[{name}]", 'kind = "folder"', f'folder = "{real.folder or name}"']
        lines += [f'{key} = ""' for key in ("title", "licence", "homepage", "citation", "by_hand")]
        lines += [f'[[{name}.members]]\nname = "{member.name}"' for member in real.members]
    (root / "sets.toml").write_text("\n".join(lines))
    return Data(root, root / "sets.toml")


def test_tokens_say_where_words_begin(root: Path) -> None:
    tokens = Tokens(Data(root), ENCODER)
    ids = {word: tokens.plain([word])[0] for word in ("bonn", "is", "a")}
    public, places = sentence_tokens(tokens, [("bonn", "is", "\u200d", "a"), ("is", "bonn", "a")], 8)
    assert public["offsets"].tolist() == [0, 8, 16]
    # The joiner has no piece of its own; the last letter of the second sentence's place fits, its third word does not.
    assert public["tokens"].tolist() == [1, *ids["bonn"], *ids["is"], 2, 1, *ids["is"], *ids["bonn"], 2]
    assert public["first"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    assert places.tolist() == [1, 5, -1, -1, 1, 3, -1]
    public, places = sentence_tokens(tokens, [("bonn", "\u200d", "a")], 24)
    assert public["tokens"].tolist() == [1, *ids["bonn"], tokens.unknown, *ids["a"], 2]
    assert places.tolist() == [1, 5, 6]


def test_the_tagger_equals_the_encoder_on_each_sentence(root: Path) -> None:
    task = miniature("conll-ner-en-es")
    model = task.model().eval()
    assert {name.split(".")[1] for name, item in model.named_parameters() if not item.requires_grad} == {"net"}
    frozen = [name for name, item in model.encoder.net.named_parameters() if not item.requires_grad]
    assert all(name.startswith(("embeddings.", "encoder.layer.0.")) for name in frozen)
    assert any(item.requires_grad for item in model.encoder.net.parameters())
    torch.nn.init.normal_(model.head.weight)
    words = [("bonn", "is"), ("a", "anna", "was"), ("jan",)]
    public, places = sentence_tokens(task.tokenizer, words, 24)
    inputs = task.inputs(public, np.arange(3))
    assert inputs.shape == (3, 2, 24)
    with torch.no_grad():
        found = model(inputs)
        at = 0
        for row, own in enumerate(words):
            ids = inputs[row : row + 1, 0]
            states = model.encoder.net(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[0]
            for _ in own:
                expected = states[places[at]] @ model.head.weight.T
                torch.testing.assert_close(found[row, places[at]], expected, rtol=0, atol=1e-5)
                at += 1
    assert torch.equal(found != 0, task.places(inputs)[:, :, None].expand_as(found))


@pytest.mark.parametrize("name", ["conll-ner-en-es", "conll-ner-es-nl", "wikiann-ner-en-ar"])
def test_a_bundle_and_its_split(data: Data, tmp_path: Path, name: str) -> None:
    task = miniature(name)
    bundle = task.build(data)
    folder = write_bundle(tmp_path / "bundle", bundle)
    split, private = task.split(folder, 0), folder.private()
    sizes = bundle.facts["sizes"]
    parts = [split.labeled, split.source_validation, split.source_test, split.unlabeled, split.validation, split.test]
    assert [len(part) for part in parts] == list(sizes.values())
    assert bundle.facts["tags"] == list(tag_names(task.types))
    assert len(bundle.facts["tags"]) == task.n_classes
    inputs = task.inputs(bundle.public, split.labeled)
    assert split.labels.shape == (len(inputs), task.length)
    assert np.array_equal(split.labels >= 0, task.places(inputs).numpy())
    for row, index in enumerate(split.labeled):
        own = slice(*private["word_offsets"][index : index + 2])
        assert split.labels[row][split.labels[row] >= 0].tolist() == private["tags"][own].tolist()


def test_words_that_are_not_read_are_missed(data: Data, tmp_path: Path) -> None:
    """The true classes score 1 on whole sentences, and less where a place stands behind the last token."""
    for length, whole in ((24, True), (16, False)):
        task = miniature("conll-ner-en-es", length=length)
        bundle = task.build(data)
        assert (bundle.facts["words_not_read"] == 0) == whole
        folder = write_bundle(tmp_path / f"bundle-{length}", bundle)
        split = task.split(folder, 0)
        labels = task.labels(folder.private(), split.test)
        classes = task._targets(folder.private(), split.test)
        scores = task.score(np.maximum(classes, 0).astype(np.int16), labels)
        assert scores.metrics["entity_precision"] == 1.0
        assert (scores.metrics["entity_recall"] == 1.0) == whole
        assert scores.n == len(split.test)


def test_the_targets_tags_move_neither_what_is_public_nor_the_plan(data: Data, root: Path, tmp_path: Path) -> None:
    task = miniature("conll-ner-en-es")
    first = task.build(data)
    for part in ("train", "testa", "testb"):
        file = root / "conll-2002-es" / f"esp.{part}"
        file.write_text(file.read_text().replace("LOC", "ORG").replace("I-PER", "O"))
    second = task.build(data)
    for name, array in first.public.items():
        np.testing.assert_array_equal(array, second.public[name])
    splits = [task.split(write_bundle(tmp_path / str(at), bundle), 0) for at, bundle in enumerate((first, second))]
    for name, value in vars(splits[0]).items():
        np.testing.assert_array_equal(value, getattr(splits[1], name))
    assert not np.array_equal(first.private["tags"], second.private["tags"])


def test_the_oracle_is_the_supervised_loss_on_the_pool(data: Data, tmp_path: Path) -> None:
    """Its second mean is the loss of the pool's sentences with their tags."""
    task = miniature("conll-ner-en-es")
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    split = task.split(folder, 0)
    model = task.model().eval()
    torch.nn.init.normal_(model.head.weight)
    x, u = (task.inputs(folder.public(), part[:6]) for part in (split.labeled, split.unlabeled))
    y = torch.from_numpy(split.labels[:6])
    method = OracleLabels(weight=0.7)
    true = torch.from_numpy(task.oracle(folder.private(), split.unlabeled))
    method.model, method.view = model, SimpleNamespace(task=task, unlabeled_labels=true)
    pool = type("Batch", (SimpleNamespace,), {"__len__": lambda self: 6})(weak=u, x=u, index=torch.arange(6))
    batch = type(pool)(weak=x, y=y)
    hidden = torch.from_numpy(task._targets(folder.private(), split.unlabeled[:6]))
    expected = task.loss(model(x), y) + 0.7 * task.loss(model(u), hidden)
    torch.testing.assert_close(method.loss(batch, pool), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "method", [Supervised(), ProKD(teacher=0.4), OracleLabels(ratio=1)], ids=["supervised", "prokd", "oracle-labels"]
)
def test_a_run_on_a_miniature(data: Data, tmp_path: Path, play: Callable[..., Any], method: Any) -> None:
    task = miniature("conll-ner-en-es")
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    outcome = play(method, task, folder, limit=2500.0, name=type(method).__selfbench__["name"])
    assert 0.0 <= outcome.metrics["entity_f1"] <= 1.0
    assert set(outcome.groups["entity_f1"]) == set(TYPES)
    assert outcome.n == 12
    assert {"entity_f1", "validation", "source_validation", "source_test"} == set(outcome.curve[-1].values)


def test_outputs_of_another_form_are_refused(root: Path) -> None:
    with pytest.raises(MethodError, match=r"method 'mine' returned \(3, 9\) for 3 sentences; expected \(3, 24, 9\)"):
        miniature("conll-ner-en-es").sealed(torch.zeros(3, 9), 3, "mine")


def test_what_is_missing_is_named_with_what_to_type(tmp_path: Path) -> None:
    data = Data(tmp_path)
    with pytest.raises(DataMissing, match=r"esp\.train is missing\.\nType `selfbench data fetch conll-2002-es`"):
        data.file("conll-2002-es", "esp.train")
    with pytest.raises(DataMissing, match=r"eng\.train is missing\.\nBy hand: put what is published at .*conll-2003"):
        data.file("conll-2003-en", "eng.train")
    with pytest.raises(DataMissing, match=r"Type `selfbench data fetch bert-base-multilingual-cased` \(0\.7 GB\)"):
        data.file(ENCODER, "model.safetensors")


def test_features_are_the_states_of_the_tokens_that_have_a_class(root: Path) -> None:
    from selfbench.methods.common.features import with_features

    task = miniature("conll-ner-en-es")
    model = task.model().eval()
    public, _ = sentence_tokens(task.tokenizer, [("bonn", "is"), ("anna",)], 24)
    inputs = task.inputs(public, np.arange(2))
    _, states = with_features(model, inputs)
    torch.nn.init.normal_(model.head.weight)
    assert states.shape == (3, model.encoder.width)
    torch.testing.assert_close(model.head(states), model(inputs)[task.places(inputs)], rtol=0, atol=1e-6)
    assert isinstance(model, TokenTagger)
    assert isinstance(model.encoder, TextEncoder)
    assert NO_TAG == -100


@pytest.mark.usefixtures("data")
def test_runs_in_worker_processes_are_recorded_and_shown(at_work: Any) -> None:
    record = at_work.prove("small-ner", "supervised")
    assert record.provenance.packages.keys() == {"numpy", "torch", "transformers", "tokenizers"}
    assert (record.status, record.n) == ("ok", 12)
    assert set(record.groups["entity_f1"]) == set(TYPES)
    page = at_work.page(record, at_work.root / "first")
    for name in ("entity_f1", "entity_precision", "entity_recall"):
        assert METRICS[name].title in page
