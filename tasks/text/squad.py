"""Questions on texts in the layout of SQuAD 1.1, which XQuAD and MLQA share, read strictly.

{"version": ..., "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
    {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": ...}]}]}]}]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ...suite.errors import DataMissing
from .rows import REMEDY, read_json, row_error


class Question(NamedTuple):
    """A question on a context, and its answers as (text, its first character in the context)."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read_squad(path: Path, learned: bool = True) -> list[Question]:
    """The questions of a file, in order. What is wrong is said with the number of the question, from 1.

    Raises `DataMissing` where the file is not there or no JSON, a key is missing or of another kind, a text is empty,
    an id comes twice, an answer lies outside of its context, or, where places are `learned`, is not what stands there.
    """
    whole = read_json(path)
    found: list[Question] = []
    ids: set[str] = set()
    for article in _list(path, 1, whole, "data"):
        for paragraph in _list(path, len(found) + 1, article, "paragraphs"):
            context = _text(path, len(found) + 1, paragraph, "context")
            for item in _list(path, len(found) + 1, paragraph, "qas"):
                one = _question(path, len(found) + 1, item, context, learned)
                if one.id in ids:
                    raise row_error(path, len(found) + 1, f"its id '{one.id}' is that of another question")
                ids.add(one.id)
                found.append(one)
    if not found:
        raise DataMissing(f"{path} has no question. {REMEDY}")
    return found


def _question(path: Path, number: int, item: Any, context: str, learned: bool) -> Question:
    id, question = (_text(path, number, item, key) for key in ("id", "question"))
    answers = []
    for answer in _list(path, number, item, "answers"):
        text, start = _text(path, number, answer, "text"), answer.get("answer_start")
        if type(start) is not int or not 0 <= start <= len(context) - len(text):
            raise row_error(
                path, number, f"the answer '{text[:80]}' of '{id}' at {start!r} lies outside of its context of "
                f"{len(context)} characters",
            )  # fmt: skip
        if learned and context[start : start + len(text)] != text:
            there = context[start : start + len(text)][:80]
            raise row_error(
                path, number, f"the answer '{text[:80]}' of '{id}' is not at {start}, where '{there}' stands"
            )
        answers.append((text, start))
    if not answers:
        raise row_error(path, number, f"'{id}' has no answer")
    return Question(id, question, context, tuple(answers))


def _list(path: Path, number: int, item: Any, key: str) -> list[Any]:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, list):
        raise row_error(path, number, f"it has no list '{key}'")
    return value


def _text(path: Path, number: int, item: Any, key: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise row_error(path, number, f"its '{key}' is {str(value)[:80]!r}, expected a text")
    return value
