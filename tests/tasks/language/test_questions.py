"""Questions with options: readers of the published forms on small files of them, their tasks on a tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.tasks.language.arc_easy import ArcEasySmol
from selfbench.tasks.language.multiple_choice import SETS, MultipleChoice
from selfbench.tasks.language.questions import (
    Question,
    cloze_of,
    distinct,
    packed_questions,
    read_adapters_json,
    read_hub_parquet,
    read_social_iqa,
)

TEXTS = Path(os.environ.get("SELFBENCH_DATA", "nowhere")) / "text"


def present(path: str) -> Path:
    if not (TEXTS / path).is_file():
        pytest.skip(f"needs {path} below $SELFBENCH_DATA/text")
    return TEXTS / path


def item(question: str, options: list[str], right: int) -> dict[str, str]:
    shown = " ".join(f"Answer{at + 1}: {text}" for at, text in enumerate(options))
    return {
        "instruction": f"Please choose the correct answer to the question: {question}\n\n{shown}\n\n"
        f"Answer format: {'/'.join(f'answer{at + 1}' for at in range(len(options)))}",
        "answer": f"answer{right + 1}",
    }


def test_questions_and_their_options(tmp_path: Path) -> None:
    rows = [item("Why?\nSay.", ["It is.", "It is not."], 1), item("Who?", ["A", "B", "C", "D"], 0)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    found = read_adapters_json(tmp_path / "q.json")
    assert found == [Question("Why? Say.", ("It is.", "It is not."), 1), Question("Who?", ("A", "B", "C", "D"), 0)]
    public, private = packed_questions(found, "arc")
    cloze = cloze_of(public, "arc", np.array([1, 0]))
    assert cloze.prompts == ["Question: Who?\nAnswer:", "Question: Why? Say.\nAnswer:"]
    assert cloze.options == [[" A", " B", " C", " D"], [" It is.", " It is not."]]
    assert private["arc_right"].tolist() == [1, 0]
    assert distinct([found[0], found[1], found[0]]) == found


@pytest.mark.parametrize("change", [{"answer": "answer5"}, {"answer": "B"}, {"instruction": "Who?"}])
def test_another_form_is_refused_with_its_place(tmp_path: Path, change: dict[str, str]) -> None:
    rows = [item("Who?", ["A", "B"], 0), item("Who?", ["A", "B"], 0) | change]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    with pytest.raises(DataMissing, match=r"item 1.*`selfbench data verify`"):
        read_adapters_json(tmp_path / "q.json")


def test_the_questions_of_arc_easy() -> None:
    test, train = (read_adapters_json(present(f"arc_easy/{part}.json")) for part in ("test", "train"))
    assert (len(test), len(train)) == (2376, 2251)
    assert {len(one.options) for one in test} <= {3, 4, 5}


def parquet_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def hub_row(question: str, labels: list[str], right: str, name: str = "question") -> dict[str, Any]:
    options = [f"{question} {label}." for label in labels]
    return {"id": question, name: f" {question}?\n", "choices": {"text": options, "label": labels}, "answerKey": right}


@pytest.mark.parametrize("name", ["question", "question_stem"])
def test_tables_of_the_hub(tmp_path: Path, name: str) -> None:
    rows = [hub_row("Who", ["A", "B", "C"], "B", name), hub_row("Why", ["1", "2", "3", "4"], "4", name)]
    assert read_hub_parquet(parquet_file(tmp_path / "t.parquet", rows), name) == [
        Question("Who?", ("Who A.", "Who B.", "Who C."), 1),
        Question("Why?", ("Why 1.", "Why 2.", "Why 3.", "Why 4."), 3),
    ]


def test_a_table_of_another_form_is_refused_with_its_place(tmp_path: Path) -> None:
    rows = [hub_row("Who", ["A", "B"], "B"), hub_row("Why", ["A", "B"], "C")]
    with pytest.raises(DataMissing, match=r"t\.parquet, row 2 \(from 1\): the answer 'C'.*`selfbench data verify`"):
        read_hub_parquet(parquet_file(tmp_path / "t.parquet", rows))
    with pytest.raises(DataMissing, match=r"(?s)cannot be read as a table of questions.*`selfbench data verify`"):
        read_hub_parquet(parquet_file(tmp_path / "u.parquet", [{"problem": "1"}]))
    (tmp_path / "v.parquet").write_text("torn")
    with pytest.raises(DataMissing, match=r"v\.parquet"):
        read_hub_parquet(tmp_path / "v.parquet")


def social(folder: Path, part: str, n: int) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"context": f"{part} {at} met  Kim.", "question": "Why?", "answerA": "a", "answerB": f"b {at}", "answerC": "c"}
        for at in range(n)
    ]
    lines, labels = folder / f"{part}.jsonl", folder / f"{part}-labels.lst"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels.write_text("".join(f"{at % 3 + 1}\n" for at in range(n)))
    return lines, labels


def test_questions_of_social_iqa(tmp_path: Path) -> None:
    lines, labels = social(tmp_path, "dev", 4)
    found = read_social_iqa(lines, labels)
    assert found[1] == Question("dev 1 met Kim. Why?", ("a", "b 1", "c"), 1)
    assert [one.right for one in found] == [0, 1, 2, 0]
    labels.write_text("1\n2\n")
    with pytest.raises(DataMissing, match=r"4 lines, but.*`selfbench data verify`"):
        read_social_iqa(lines, labels)
    labels.write_text("1\n2\n4\n1\n")
    with pytest.raises(DataMissing, match=r"line 3: its label is '4'.*`selfbench data verify`"):
        read_social_iqa(lines, labels)
    lines.write_text("{}\n" * 4)
    with pytest.raises(DataMissing, match=r"line 1: it has no 'answerA'.*`selfbench data verify`"):
        read_social_iqa(lines, labels)


def test_every_set_has_a_task_with_its_data() -> None:
    entries = registry.entries("task")
    for name in SETS:
        task = entries[name].load()
        assert task.questions_of == name
        assert set(entries[name].options["data"]) == {name, "qwen25-05b-instruct"}
    assert ArcEasySmol.questions_of == "arc-easy"
    assert ArcEasySmol.recipe.lr != MultipleChoice.recipe.lr


def test_a_set_becomes_problems(tiny_hub_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = tmp_path / "data" / "social-iqa" / "socialiqa-train-dev"
    social(folder, "dev", 30)
    lines, labels = social(folder, "train", 700)
    # A question that stands in both parts, and one that stands twice.
    dev = (folder / "dev.jsonl").read_text().splitlines()
    train = lines.read_text().splitlines()
    lines.write_text("\n".join([*train, dev[0], train[0]]) + "\n")
    labels.write_text(labels.read_text() + "1\n1\n")
    task = registry.get("task", "social-iqa").load()()
    bundle = write_bundle(tmp_path / "bundle", task.build(Data(data_folder())))
    assert (bundle.facts["test_questions"], bundle.facts["training_questions"]) == (30, 700)
    public, private = bundle.public(), bundle.private()
    problems, other = task.problems(bundle, 0), task.problems(bundle, 1)
    assert (len(problems.demonstrations), len(problems.pool), len(problems.test)) == (128, 512, 30)
    assert problems.demonstrations.tolist() != other.demonstrations.tolist()
    assert problems.test.tolist() == other.test.tolist()
    for at, response in zip(problems.demonstrations.tolist(), problems.responses, strict=True):
        [prompt] = task.prompts(public, np.array([at]))
        cloze = task.cloze(public, np.array([at]))
        assert cloze.prompts == [prompt]
        assert response == cloze.options[0][private["choice_right"][at]]
        assert [task.answer(response)] == task.answers(private, np.array([at]))
        assert task.hinted(prompt, "x").endswith(" (x)\nAnswer:")
