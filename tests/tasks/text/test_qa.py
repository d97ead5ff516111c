"""Generalised cross-lingual question answering, on miniatures in the layouts of SQuAD, XQuAD and MLQA."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.self_distillation_generations import SelfDistillationGenerations
from selfbench.suite import registry
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, MethodError
from selfbench.suite.metrics import METRICS
from selfbench.tasks.text.answers import answer_words, score_answer
from selfbench.tasks.text.encoders import Tokens
from selfbench.tasks.text.qa import DECODINGS, HIDDEN, Windows, _best_windows, _Texts, decode
from selfbench.tasks.text.squad import Question, read_squad

ENCODER = "bert-base-multilingual-cased"
LANGUAGES = ("en", "es", "zh")
WORDS = {
    "en": ("the", "city", "is", "at", "lake"),
    "es": ("la", "villa", "es", "en", "año"),
    "zh": ("大阪", "市", "長", "市", "大"),
}


def squad_file(path: Path, contexts: list[tuple[str, list[dict[str, Any]]]], version: str = "1.1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    paragraphs = [{"context": context, "qas": qas} for context, qas in contexts]
    path.write_text(json.dumps({"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}))


def context_of(number: int, language: str) -> tuple[str, str, int]:
    """A text whose answer is its only number, the number, and where that begins."""
    words = [WORDS[language][(number * 3 + at * at) % 5] for at in range(6 + number % 9)]
    place = number % len(words)
    text = " ".join([*words[:place], str(100 + number), *words[place:]]) + "."
    return text, str(100 + number), text.index(str(100 + number))


def item(number: int, text_language: str, question_language: str) -> tuple[str, list[dict[str, Any]]]:
    text, answer, start = context_of(number, text_language)
    asked = f"{WORDS[question_language][0]} {number}?"
    return text, [{"id": f"q{number}", "question": asked, "answers": [{"text": answer, "answer_start": start}]}]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: Callable[..., Any]) -> Path:
    letters(tmp_path / ENCODER)
    squad_file(tmp_path / "squad/train-v1.1.json", [item(number, "en", "en") for number in range(40)])
    for language in LANGUAGES:
        parallel = [item(number, language, language) for number in range(100, 112)]
        squad_file(tmp_path / f"xquad/xquad.{language}.json", parallel)
        for asked in LANGUAGES:
            for folder, numbers in (("dev", range(200, 203)), ("test", range(300, 306))):
                name = f"{folder}-context-{language}-question-{asked}.json"
                rows = [item(number, language, asked) for number in numbers]
                squad_file(tmp_path / "mlqa/MLQA_V1" / folder / name, rows, "1.0")
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    return tmp_path


def miniature(name: str = "mlqa-gxlt", **changes: Any) -> Any:
    cls: Any = registry.get("task", name).load()
    own = {"length": 40, "stride": 12, "question_length": 8, "languages": LANGUAGES, "evaluation_batch": 16,
           "target_languages": min(cls.target_languages, 1), **changes}  # fmt: skip
    made = type(cls.__name__, (cls,), own)
    made.__selfbench__ = cls.__selfbench__
    return made()


@pytest.fixture
def data(root: Path) -> Data:
    """The data folder, described as the project does, but for the digests of other files of the same names."""
    lines = []
    for name in ("squad", "xquad", "mlqa", ENCODER):
        lines += [f"[{name}]", 'kind = "folder"']
        lines += [f'{key} = ""' for key in ("title", "licence", "homepage", "citation", "by_hand")]
        lines += [f'[[{name}.members]]\nname = "{member.name}"' for member in Data(root).describe(name).members]
    (root / "sets.toml").write_text("\n".join(lines))
    return Data(root, root / "sets.toml")


def test_answers_are_compared_by_the_words_that_count() -> None:
    assert answer_words("The  U.S. (a nation)", "en") == ["us", "nation"]
    assert answer_words("La «Casa» de los Padres", "es") == ["casa", "de", "padres"]
    assert answer_words("der Turm des Königs", "de") == ["turm", "königs"]
    assert answer_words("der Turm", "fr") == ["der", "turm"]
    assert answer_words("的 2008年Beijing奥运", "zh") == ["的", "2008", "年", "beijing", "奥", "运"]
    assert answer_words("كتاب القلم", "ar") == ["كتاب", "قلم"]
    assert answer_words("एक घर", "hi") == ["एक", "घर"]
    assert answer_words("những con của tôi", "vi") == ["con", "tôi"]
    assert answer_words(string.punctuation, "en") == []
    assert score_answer("the big red house", ["red house", "house"], "en") == (0.0, pytest.approx(0.8))
    assert score_answer("Red-House!", ["redhouse"], "en") == (1.0, 1.0)
    assert score_answer("a a b", ["a b b"], "fr") == (0.0, pytest.approx(2 / 3))
    assert score_answer("the", ["a"], "en") == (1.0, 0.0)
    assert score_answer("", ["b"], "en") == (0.0, 0.0)


def slow_decode(first: list[float], last: list[float], longest: int) -> tuple[list[int], list[int]]:
    n = len(first)
    start = max(range(1, n), key=lambda at: (first[at], -at))
    greedy = [start, max(range(start, min(n, start + longest)), key=lambda at: (last[at], -at))]
    spans = [(a, b) for a in range(1, n) for b in range(a, min(n, a + longest))]
    best = max(spans, key=lambda span: (first[span[0]] + last[span[1]], -span[0], -span[1]))
    return greedy, list(best)


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_decodings_equal_a_search_over_all_spans(longest: int) -> None:
    logits = torch.randn(200, 2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:100] = logits[:100].round()  # ties
    logits[:, :, 0] += 5.0
    logits[::2, :, 9:] = HIDDEN
    found = decode(logits, longest)
    apart = 0
    for row, (first, last) in zip(found.tolist(), logits.tolist(), strict=True):
        greedy, best = slow_decode(first, last, longest)
        assert [row[:2], row[3:5]] == [greedy, best]
        for span, score in ((greedy, row[2]), (best, row[5])):
            assert score == pytest.approx(first[span[0]] + last[span[1]], abs=1e-5)
        assert row[5] >= row[2]
        apart += greedy != best
    assert (apart > 0) == (longest > 1) or longest == 1


def test_the_window_with_the_best_span_answers() -> None:
    scores, questions = np.array([1.0, 3.0, 3.0, 0.0, -1.0]), np.array([7, 4, 4, 7, 9])
    assert _best_windows(scores, questions).tolist() == [1, 0, 4]


def test_windows_hold_answers_and_know_their_characters(root: Path) -> None:
    tokens = Tokens(Data(root), ENCODER)
    context = "Osaka is a big city, and Año 12 a year; lake."
    start = context.index("Año 12")
    windows = Windows(tokens, 20, 5, 4)
    windows.add([Question("x", "where is it", context, (("Año 12", start), ("12", start + 4)))], 3, 1)
    bundle = windows.bundle()
    private, texts = bundle.private, _Texts(bundle.private)
    assert texts.answers(0) == ["Año 12", "12"]
    whole = 0
    for window, (first, last) in enumerate(private["targets"].tolist()):
        begin, end = bundle.public["offsets"][window : window + 2]
        ids = bundle.public["tokens"][begin:end].tolist()
        assert len(ids) <= 20
        assert ids[0] == 1
        assert [at for at, id in enumerate(ids) if id == 2] == [5, len(ids) - 1]
        assert ids[1:5] == tokens.plain(["where is it"])[0][:4]
        if first:
            assert texts.span(window, first, last) == "Año 12"
            whole += 1
        else:
            assert texts.span(window, 0, 0) == ""
        assert texts.span(window, 6, len(ids) - 2).replace(" ", "") in context.replace(" ", "")
        assert texts.span(window, 6, len(ids)) == ""
    assert 0 < whole < len(private["targets"])
    covered = {at for begin, end in zip(private["begins"], private["ends"], strict=True) for at in range(begin, end)}
    assert covered >= {at for at, character in enumerate(context) if character != " "}


def test_a_bundle_and_its_split(data: Data, tmp_path: Path) -> None:
    task = miniature()
    bundle = task.build(data)
    folder = write_bundle(tmp_path / "bundle", bundle)
    private = folder.private()
    assert bundle.facts["questions"] == 40 + 9 * 12 + 9 * 3 + 9 * 6
    assert bundle.facts["questions_without_a_whole_answer"] == 0
    assert bundle.facts["test_contexts_in_train"] == 0
    splits = [task.split(folder, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(splits[0].labeled, splits[1].labeled)
    assert not np.array_equal(splits[0].labeled, splits[2].labeled)
    for split in splits:
        assert len(split.unlabeled) == 0
        assert set(private["part"][split.validation]) == {2}
        own = private["question"][split.labeled]
        pairs: dict[int, set[int]] = {}
        for parallel, pair in zip(private["parallel"][own].tolist(), private["pair"][own].tolist(), strict=True):
            pairs.setdefault(parallel, set()).add(pair)
        assert pairs.pop(-1) == {0}
        # English and one more language: all four pairs of the two.
        assert sorted(pairs) == list(range(12))
        assert {frozenset(found) for found in pairs.values()} == {frozenset({0, 1, 3, 4}), frozenset({0, 2, 6, 8})}
    zero = miniature("mlqa-gxlt-zero-shot").split(folder, 0)
    assert set(private["part"][zero.labeled]) == {0}
    np.testing.assert_array_equal(zero.test, splits[0].test)


def test_the_question_of_one_language_is_asked_of_the_text_of_another(data: Data) -> None:
    task = miniature()
    bundle = task.build(data)
    private, tokens, texts = bundle.private, Tokens(data, ENCODER), _Texts(bundle.private)
    chosen = np.flatnonzero((private["part"] == 1) & (private["pair"][private["question"]] == 1 * 3 + 2))
    for window in chosen:
        begin, end = bundle.public["offsets"][window : window + 2]
        ids = bundle.public["tokens"][begin:end].tolist()
        number = 100 + int(private["parallel"][private["question"][window]])
        assert ids[1 : ids.index(2)] == tokens.plain([f"la {number}?"])[0][:8]
        context, answer, _ = context_of(number, "zh")
        first, last = private["targets"][window].tolist()
        assert texts.span(window, first, last) == (answer if first else "")
        assert texts._piece("context", int(private["context"][private["question"][window]])) == context
    assert len(chosen) >= 12


def true_spans(task: Any, private: Any, indices: np.ndarray) -> np.ndarray:
    """What a perfect reader seals: the answer's window is sure of it, the others are not."""
    targets = private["targets"][indices].astype(np.float32)
    score = np.where(targets[:, :1] > 0, 9.0, -9.0)
    half = np.concatenate([targets, score], axis=1)
    return np.concatenate([half, half], axis=1)


def test_scores_are_means_over_pairs_of_languages(data: Data, tmp_path: Path) -> None:
    task = miniature()
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    split, private = task.split(folder, 0), folder.private()
    labels = task.labels(private, split.test)
    sealed = true_spans(task, private, split.test)
    perfect = task.score(sealed, labels)
    assert perfect.metrics == dict.fromkeys(
        ["em_greedy", "f1_greedy", "em_exact_extract", "f1_exact_extract", "f1_same_language"], 1.0
    )
    assert perfect.n == 9 * 6
    assert set(perfect.groups["f1_greedy"]) == {f"{a}-{b}" for a in LANGUAGES for b in LANGUAGES}
    # Of one pair everything is wrong, of another's greedy spans one token is left out.
    pairs = private["pair"][private["question"][split.test]]
    sealed[pairs == 1, :2] = sealed[pairs == 1, 3:5] = 0.0
    sealed[pairs == 4, 1] = np.maximum(sealed[pairs == 4, 1] - 1, sealed[pairs == 4, 0])
    scores = task.score(sealed, labels)
    assert scores.groups["f1_exact_extract"]["en-es"] == 0.0
    assert scores.metrics["f1_exact_extract"] == pytest.approx(8 / 9)
    assert scores.groups["em_greedy"]["es-es"] == 0.0
    assert scores.metrics["em_greedy"] == pytest.approx(7 / 9)
    assert scores.metrics["f1_same_language"] == 1.0
    # With hidden labels permuted, spans may stand anywhere.
    moved = labels[np.random.default_rng(0).permutation(len(labels))]
    assert task.score(true_spans(task, private, split.test), moved).metrics["em_greedy"] < 0.5


def test_the_reader_points_into_the_text_alone(root: Path) -> None:
    task = miniature()
    model = task.model().eval()
    torch.nn.init.normal_(model.head.weight)
    windows = Windows(task.tokenizer, 40, 12, 8)
    windows.add([Question(str(n), "who is it", context_of(n, "en")[0], (("0", 0),)) for n in range(4)], 0, 0)
    public = windows.bundle().public
    inputs = task.inputs(public, np.arange(4))
    with torch.no_grad():
        logits = model(inputs)
    assert logits.shape == (4, 2, 40)
    for ids, own in zip(inputs, logits, strict=True):
        states = model.encoder.net(
            input_ids=ids[None], attention_mask=(ids != 0).long()[None],
            token_type_ids=((ids == 2).long().cumsum(0) - (ids == 2).long()).clamp(max=1)[None],
        ).last_hidden_state[0]  # fmt: skip
        expected = states @ model.head.weight.T
        second = int((ids == 2).nonzero()[0, 0])
        end = int((ids == 2).nonzero()[1, 0])
        shown = [0, *range(second + 1, end)]
        torch.testing.assert_close(own.T[shown], expected[shown], rtol=0, atol=1e-5)
        hidden = [at for at in range(40) if at not in shown]
        assert (own.T[hidden] == HIDDEN).all()
    with pytest.raises(MethodError, match=r"method 'mine' returned \(4, 40, 2\) for 4 windows; expected \(4, 2, 40\)"):
        task.sealed(logits.transpose(1, 2), 4, "mine")


def test_hidden_answers_move_neither_what_is_public_nor_the_plan(data: Data, root: Path, tmp_path: Path) -> None:
    task = miniature()
    first = task.build(data)
    for folder in ("dev", "test"):
        for file in (root / "mlqa/MLQA_V1" / folder).iterdir():
            whole = json.loads(file.read_text())
            for paragraph in whole["data"][0]["paragraphs"]:
                paragraph["qas"][0]["answers"] = [{"text": paragraph["context"][:4], "answer_start": 0}]
            file.write_text(json.dumps(whole))
    second = task.build(data)
    for name, array in first.public.items():
        np.testing.assert_array_equal(array, second.public[name])
    splits = [task.split(write_bundle(tmp_path / str(at), bundle), 0) for at, bundle in enumerate((first, second))]
    for name, value in vars(splits[0]).items():
        np.testing.assert_array_equal(value, getattr(splits[1], name))
    assert not np.array_equal(first.private["targets"], second.private["targets"])


@pytest.mark.parametrize(
    "method", [Supervised(), SelfDistillationGenerations()], ids=["supervised", "self-distillation-generations"]
)
def test_a_run_on_a_miniature(data: Data, tmp_path: Path, play: Callable[..., Any], method: Any) -> None:
    task = miniature()
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    outcome = play(method, task, folder, limit=1500.0)
    assert set(outcome.metrics) == {
        "em_greedy",
        "f1_greedy",
        "em_exact_extract",
        "f1_exact_extract",
        "f1_same_language",
    }
    assert all(0.0 <= value <= 1.0 for value in outcome.metrics.values())
    assert outcome.n == 54


@pytest.mark.usefixtures("data")
def test_runs_in_worker_processes_are_recorded_and_shown(at_work: Any) -> None:
    done = at_work.call("run", "-t", "small-mlqa", "-m", "self-distillation-generations", "-s", "0")
    assert done.returncode == 0, done.stderr
    [first] = at_work.records(at_work.results)
    names = {f"{name}_{decoding}" for name in ("em", "f1") for decoding in DECODINGS}
    record = at_work.prove("small-mlqa", "supervised")
    for own in (first, record):
        assert (own.status, own.n) == ("ok", 54)
        assert names <= set(own.metrics)
        assert len(own.groups["f1_exact_extract"]) == 9
    page = at_work.page(record, at_work.root / "first")
    for name in names:
        assert f">{METRICS[name].title}" in page


def test_a_question_that_is_learned_from_is_not_answered(data: Data, root: Path) -> None:
    """By its id, in whichever part and pair of languages."""
    file = root / "mlqa/MLQA_V1/test/test-context-zh-question-es.json"
    whole = json.loads(file.read_text())
    learned = json.loads((root / "squad/train-v1.1.json").read_text())["data"][0]["paragraphs"][0]["qas"][0]["id"]
    whole["data"][0]["paragraphs"][2]["qas"][0]["id"] = learned
    file.write_text(json.dumps(whole))
    message = rf"test-context-zh-question-es\.json, row 3: its id '{learned}' is that of a question of SQuAD or XQuAD"
    with pytest.raises(DataMissing, match=message):
        miniature().build(data)


def question(**changes: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    return [("a text", [{"id": "1", "question": "what?", "answers": [{"text": "text", "answer_start": 2}], **changes}])]


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        (question(answers=[{"text": "text", "answer_start": 3}]), "'text' of '1' at 3 lies outside of its context"),
        (question(answers=[{"text": "text", "answer_start": -1}]), "'text' of '1' at -1 lies outside"),
        (question(answers=[{"text": "text", "answer_start": "2"}]), "'text' of '1' at '2' lies outside"),
        (question(answers=[{"text": "text", "answer_start": 1}]), "row 1: .* of '1' is not at 1, where ' tex'"),
        (question(answers=[]), r"row 1: '1' has no answer"),
        (question(answers=[{"text": " ", "answer_start": 2}]), r"row 1: its 'text' is ' ', expected a text"),
        (question(question=""), r"row 1: its 'question' is '', expected a text"),
        (question() + question(), r"row 2: its id '1' is that of another question"),
        (question(answers=None), r"row 1: it has no list 'answers'"),
        ([("", [])], r"row 1: its 'context' is '', expected a text"),
        ([("a text", [])], r"some\.json has no question"),
    ],
)  # fmt: skip
def test_bad_questions_are_named_with_their_row(tmp_path: Path, contexts: Any, message: str) -> None:
    squad_file(tmp_path / "some.json", contexts)
    with pytest.raises(DataMissing, match=message):
        read_squad(tmp_path / "some.json")


def test_files_that_are_no_questions_are_named(tmp_path: Path) -> None:
    for content, message in (
        (b"{", "some.json is no JSON"), (b"\xff\xfe", "some.json is no JSON"), (b"[]", "it has no list 'data'"),
        (b'{"data": [{}]}', "it has no list 'paragraphs'"),
    ):  # fmt: skip
        (tmp_path / "some.json").write_bytes(content)
        with pytest.raises(DataMissing, match=message):
            read_squad(tmp_path / "some.json")
    with pytest.raises(DataMissing, match=r"none\.json cannot be read: No such file"):
        read_squad(tmp_path / "none.json")
    squad_file(tmp_path / "some.json", question(answers=[{"text": "text", "answer_start": 1}]))
    assert len(read_squad(tmp_path / "some.json", learned=False)) == 1


def test_what_is_missing_is_named_with_what_to_type(tmp_path: Path) -> None:
    data = Data(tmp_path)
    for name, member in (("squad", "train-v1.1.json"), ("xquad", "xquad.hi.json"), ("mlqa", "MLQA_V1/test")):
        with pytest.raises(DataMissing, match=rf"is missing\.\nType `selfbench data fetch {name}`"):
            data.file(name, member)
