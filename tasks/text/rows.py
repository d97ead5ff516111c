"""Text files with one example a line, read strictly: what is wrong is said with file, row and remedy."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...suite.errors import DataMissing, did_you_mean

LONGEST = 1_000_000
"""No line of a text data set has as many bytes; a longer one is not read into memory."""
REMEDY = "Fetch or place the published file again."


@dataclass(frozen=True)
class Row:
    """The cells of one line by the names of their columns; lines are counted from 1, headers included."""

    path: Path
    number: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """A cell that must not be empty, without the space around it."""
        text = self.cells[column].strip()
        if not text:
            raise self.error(f"'{column}' is empty")
        return text

    def one_of(self, column: str, known: Sequence[str]) -> str:
        """A cell that must be one of `known`."""
        value = self.cells[column]
        if value not in known:
            expected = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise self.error(f"'{column}' is {value[:80]!r}, expected one of {expected}.{did_you_mean(value, known)}")
        return value

    def number_within(self, column: str, low: float, high: float) -> float:
        """A cell that must be a number from `low` to `high`."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.error(f"'{column}' is {self.cells[column][:80]!r}, expected a number from {low:g} to {high:g}")
        return value

    def error(self, what: str) -> DataMissing:
        return row_error(self.path, self.number, what)


def read_delimited(
    path: Path, columns: Sequence[str], *, delimiter: str = "\t", skip: int = 0, encoding: str = "utf-8"
) -> Iterator[Row]:
    """The rows of a file without quotes, from line `skip` + 1 on; the last column may hold the delimiter itself.

    Blank lines are no rows. Raises `DataMissing` for a line that is too long, in another encoding, or has too few
    columns.
    """
    for number, line in numbered_lines(path, encoding):
        if number > skip and line.strip():
            yield _row(path, number, line.split(delimiter, len(columns) - 1), columns)


def read_csv(path: Path, columns: Sequence[str], *, encoding: str = "utf-8") -> Iterator[Row]:
    """The rows of a file of comma-separated, quoted cells without a header; quotes end in the line they begin in.

    Raises `DataMissing` as `read_delimited` does, and for quotes that do not end and for too many columns.
    """
    for number, line in numbered_lines(path, encoding):
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise row_error(path, number, f"it cannot be read as comma-separated cells ({error})") from None
        if len(cells) > len(columns):
            raise row_error(path, number, f"it has {len(cells)} columns, expected {len(columns)}")
        yield _row(path, number, cells, columns)


def unique(rows: Iterable[Row], column: str) -> Iterator[Row]:
    """The rows, each with a value of its own in `column`; raises `DataMissing` naming both rows where two share one."""
    first: dict[str, int] = {}
    for row in rows:
        value = row.text(column)
        if value in first:
            raise row.error(f"'{column}' is {value!r} as in row {first[value]}")
        first[value] = row.number
        yield row


ID_COLUMNS = ("id", "idx")
"""Columns of tables that tell rows apart, where they have them."""


class Ids:
    """Where the ids of the rows of a part stand: its training rows or its test rows, of all files together."""

    def __init__(self) -> None:
        self._places: dict[str, dict[str, tuple[Path, int]]] = {}

    def add(self, row: Row) -> None:
        """Raises `DataMissing` where an id of `row` is empty, or that of a row before it."""
        for column in ID_COLUMNS:
            if column in row.cells:
                places = self._places.setdefault(column, {})
                _refuse(row, column, places)
                places[row.cells[column]] = row.path, row.number

    def apart(self, other: Ids) -> None:
        """Raises `DataMissing` where an id is also one of the `other` part.

        Ids that number the rows of either part, as `idx` in GLUE, tell nothing of the other part's.
        """
        for column, places in self._places.items():
            others = other._places.get(column, {})
            if _number_rows(places) and _number_rows(others):
                continue
            for value, (path, number) in places.items():
                _refuse(Row(path, number, {column: value}), column, others)


def _refuse(row: Row, column: str, places: Mapping[str, tuple[Path, int]]) -> None:
    if (value := row.text(column)) in places:
        path, number = places[value]
        raise row.error(f"'{column}' is {value[:80]!r} as in row {number} of {path}")


def _number_rows(ids: Iterable[str]) -> bool:
    """Whether `ids` are numbers that rise from 0 or 1, of which no more than a tenth is left out."""
    numbers = [int(value) if value.isdecimal() else -1 for value in ids]
    rises = all(a < b for a, b in itertools.pairwise(numbers))
    return bool(numbers) and rises and 0 <= numbers[0] <= 1 and numbers[-1] <= 1.1 * len(numbers)


def numbered_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1. `encoding` is "utf-8" or "latin-1"."""
    number = 0
    with path.open("rb") as file:
        while raw := file.readline(LONGEST + 1):
            number += 1
            if len(raw) > LONGEST:
                raise row_error(path, number, f"the line is longer than {LONGEST:,} bytes")
            raw = raw.rstrip(b"\r\n")
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError as error:
                byte = f"byte 0x{raw[error.start]:02x} in column {error.start + 1}"
                raise row_error(path, number, f"{byte} is not {encoding}") from None
            if encoding == "latin-1" and not line.isascii() and _is_utf8(raw):
                raise row_error(path, number, "it is utf-8, expected latin-1")
            if "\x00" in line:
                raise row_error(path, number, "it holds a zero byte: the file is not text, or not in this encoding")
            yield number, line
    if number == 0:
        raise DataMissing(f"{path} is empty. {REMEDY}")


def read_json(path: Path) -> Any:
    """The whole of a JSON file. Raises `DataMissing` where it is not there, no JSON, or an object has a key twice."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_keys_once)
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror}. {REMEDY}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise DataMissing(f"{path} is no JSON ({error}). {REMEDY}") from None


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' comes twice in one object")
    return found


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _row(path: Path, number: int, cells: Sequence[str], columns: Sequence[str]) -> Row:
    if len(cells) < len(columns):
        raise row_error(
            path, number, f"it has no column '{columns[len(cells)]}' ({len(cells)} of {len(columns)} columns)"
        )
    return Row(path, number, dict(zip(columns, cells, strict=True)))


def row_error(path: Path, number: int, what: str) -> DataMissing:
    return DataMissing(f"{path}, row {number}: {what.removesuffix('.')}. {REMEDY}")
