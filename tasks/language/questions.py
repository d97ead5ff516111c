"""Questions with options: readers of the published forms, and how they lie in a bundle.

A question is answered by the option that is likeliest after `Question: ... Answer:`, summed over its tokens, which is
what lm-evaluation-harness calls `acc`; no letter is asked for, for small models know options by their words, not by
their letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...suite.bundle import Array
from ...suite.errors import DataMissing, UsageError
from ...suite.protocols.policy_measures import Cloze
from ...suite.protocols.texts import pack, unpack

_ITEM = re.compile(
    r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format: .*", re.S
)
_AGAIN = "Put the published file in its place: `selfbench data verify` says of every file whether it is that one."
_NEXT = re.compile(r" Answer[2-9]: ")
_RIGHT = re.compile(r"answer([1-9])")


class Question(NamedTuple):
    """A question, its options, and the number of the right one."""

    text: str
    options: tuple[str, ...]
    right: int


def read_adapters_json(file: Path) -> list[Question]:
    """The questions of a file in the form of LLM-Adapters; raises `DataMissing` on another form."""
    found = []
    for number, item in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        asked, right = _ITEM.fullmatch(item["instruction"]), _RIGHT.fullmatch(item["answer"])
        options = tuple(text.strip() for text in _NEXT.split(asked[2])) if asked else ()
        if asked is None or right is None or int(right[1]) > len(options):
            what = f"is not a question with options: {item['instruction'][:80]!r}"
            raise DataMissing(f"{file}, item {number}, {what}. {_AGAIN}")
        found.append(Question(_line(asked[1]), options, int(right[1]) - 1))
    return found


def read_hub_parquet(file: Path, question: str = "question") -> list[Question]:
    """The questions of a parquet file of the data hub, in the form that ARC, OpenBookQA and CommonsenseQA share.

    Columns: `question`, `choices` (a struct of the lists `text` and `label`), `answerKey` (one of the labels). Raises
    `DataMissing` on another form.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet files are read by pyarrow: type `pip install 'selfbench[language]'`.") from None
    try:
        rows = parquet.read_table(file, columns=[question, "choices", "answerKey"]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataMissing(f"{file} cannot be read as a table of questions ({str(error)[:200]}). {_AGAIN}") from None
    found = []
    for number, row in enumerate(rows, 1):
        labels, options = row["choices"]["label"], row["choices"]["text"]
        if row["answerKey"] not in labels or len(labels) != len(options):
            raise DataMissing(
                f"{file}, row {number} (from 1): the answer {row['answerKey']!r} is none of {labels}. {_AGAIN}"
            )
        found.append(Question(_line(row[question]), _lines(options), labels.index(row["answerKey"])))
    return found


def read_social_iqa(questions: Path, labels: Path) -> list[Question]:
    """The questions of a pair of files of Social IQa: JSON lines, and the right options' numbers from 1, one a line.

    Raises `DataMissing` on another form.
    """
    rows, right = (path.read_text(encoding="utf-8").splitlines() for path in (questions, labels))
    if len(rows) != len(right):
        raise DataMissing(f"{questions} has {len(rows)} lines, but {labels} {len(right)}. {_AGAIN}")
    found = []
    for number, (line, label) in enumerate(zip(rows, right, strict=True), 1):
        row: dict[str, Any] = json.loads(line)
        missing = {"context", "question", "answerA", "answerB", "answerC"} - row.keys()
        if missing or label.strip() not in ("1", "2", "3"):
            what = f"it has no {min(missing)!r}" if missing else f"its label is {label!r}, expected 1, 2 or 3"
            raise DataMissing(f"{questions}, line {number}: {what}. {_AGAIN}")
        options = _lines(row[f"answer{letter}"] for letter in "ABC")
        found.append(Question(_line(f"{row['context']} {row['question']}"), options, int(label) - 1))
    return found


def distinct(questions: Iterable[Question], known: Iterable[Question] = ()) -> list[Question]:
    """The questions whose text has not come before, nor is among those `known`."""
    met, found = {one.text for one in known}, []
    for one in questions:
        if one.text not in met:
            met.add(one.text)
            found.append(one)
    return found


def cloze_prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def packed_questions(questions: Sequence[Question], name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Public arrays `<name>_questions`, `<name>_options` (end to end) and `<name>_counts`; private `<name>_right`."""
    public = {
        f"{name}_questions": pack([one.text for one in questions]),
        f"{name}_options": pack([option for one in questions for option in one.options]),
        f"{name}_counts": np.array([len(one.options) for one in questions], np.int64),
    }
    return public, {f"{name}_right": np.array([one.right for one in questions], np.int64)}


def options_of(public: Mapping[str, Array], name: str) -> list[list[str]]:
    """The options of all questions."""
    flat, counts = unpack(public[f"{name}_options"]), public[f"{name}_counts"]
    ends = np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


def cloze_of(public: Mapping[str, Array], name: str, indices: Array) -> Cloze:
    options, texts = options_of(public, name), unpack(public[f"{name}_questions"][indices])
    return Cloze([cloze_prompt(text) for text in texts], [[f" {one}" for one in options[at]] for at in indices])


def _line(text: str) -> str:
    return " ".join(text.split())


def _lines(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(_line(text) for text in texts)
