"""Sentences with a tag a word, in the published layouts, read strictly: what is wrong is said with file and row.

Columns of CoNLL-2002 and CoNLL-2003: a word a line, its tag in the last column, blank lines between sentences, utf-8 or
latin-1 as both were published. Parquet of the data hub, as WikiAnn has it: a sentence a row, `tokens` and `ner_tags`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...suite.errors import DataMissing, UsageError, did_you_mean
from .entities import as_iob2, tag_names
from .rows import REMEDY, numbered_lines, row_error

_CHUNK = 1 << 20
_DOCUMENT = "-DOCSTART-"


class Sentence(NamedTuple):
    """Words, and the numbers of their tags in IOB2 (`entities.tag_names`)."""

    words: tuple[str, ...]
    tags: tuple[int, ...]


def read_tagged(path: Path, types: Sequence[str]) -> list[Sentence]:
    """The sentences of a file in one of the layouts, in order. Tags may be IOB1 or IOB2.

    Raises `DataMissing` where a tag is unknown or missing, columns are not those of the first line, a sentence or the
    file is empty, a line is too long, or the file is not of its layout.
    """
    rows = _parquet(path, types) if path.suffix == ".parquet" else _columns(path, types)
    sentences = [Sentence(tuple(words), tuple(as_iob2(np.array(tags)).tolist())) for words, tags in rows]
    if not sentences:
        raise DataMissing(f"{path} has no sentence. {REMEDY}")
    return sentences


def _columns(path: Path, types: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    known = {name: number for number, name in enumerate(tag_names(types))}
    words: list[str] = []
    tags: list[int] = []
    columns = 0
    for number, line in numbered_lines(path, _encoding(path)):
        # Words may hold other kinds of space, such as one that does not break.
        cells = re.split(r"[ \t]+", line.strip(" \t"))
        if cells == [""]:
            if words:
                yield words, tags
                words, tags = [], []
            continue
        if cells[0] == _DOCUMENT:
            continue
        columns = columns or len(cells)
        if len(cells) != columns or columns < 2:
            expected = f"{columns} as in the first line" if columns > 1 else "a word and its tag at least"
            raise row_error(path, number, f"it has {len(cells)} columns, expected {expected}")
        if cells[-1] not in known:
            raise row_error(path, number, _unknown(cells[-1], list(known)))
        words.append(cells[0])
        tags.append(known[cells[-1]])
    if words:
        yield words, tags


def _unknown(tag: str, known: Sequence[str]) -> str:
    return f"its tag is {tag[:80]!r}, expected one of {', '.join(known)}.{did_you_mean(tag, known)}"


def _encoding(path: Path) -> str:
    """ "utf-8" where the whole file is, else "latin-1"."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def _parquet(path: Path, types: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet files are read by pyarrow: type `pip install 'selfbench[text]'`.") from None
    wanted, most = ["tokens", "ner_tags"], len(tag_names(types))
    number = 0
    try:
        file = parquet.ParquetFile(path)
        for column in wanted:
            if column not in file.schema_arrow.names:
                have = ", ".join(file.schema_arrow.names)
                raise DataMissing(f"{path} has no column '{column}' (it has: {have}). {REMEDY}")
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                words, tags = (row[column] or [] for column in wanted)
                if not words:
                    raise row_error(path, number, "its sentence is empty")
                if len(words) != len(tags):
                    raise row_error(path, number, f"it has {len(words)} words and {len(tags)} tags")
                for word, tag in zip(words, tags, strict=True):
                    if not isinstance(word, str) or not word:
                        raise row_error(path, number, f"one of its words is {word!r}")
                    if type(tag) is not int or not 0 <= tag < most:
                        raise row_error(path, number, f"one of its tags is {tag!r}, expected 0 to {most - 1}")
                yield words, tags
    except (pyarrow.ArrowException, OSError) as error:
        raise DataMissing(f"{path} cannot be read as parquet ({str(error)[:200]}). {REMEDY}") from None
