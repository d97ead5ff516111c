"""Tables of texts in the column layout of the data hub: folders of csv, jsonl or parquet files, read strictly.

What is wrong is said with file and row, as in `rows.py`; a row of a parquet file counts from 1, without a header.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...suite.errors import DataMissing, UsageError
from .rows import REMEDY, Row, numbered_lines, row_error

FORMS = (".csv", ".jsonl", ".parquet")


def read_folder(folder: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of all files of `folder` in the order of their names, cells as text; columns that are not named go.

    Of columns that are `optional`, those are read that there are.

    Raises `DataMissing` where there is no file, or files of several forms, which would be the same rows twice; where a
    column is missing, a line is too long or not utf-8, or a row has no value.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in FORMS) if folder.is_dir() else []
    forms = {path.suffix for path in files}
    if len(forms) != 1:
        found = f"files of {len(forms)} forms ({', '.join(sorted(forms))})" if forms else "no file"
        raise DataMissing(f"{folder} has {found}; expected files of one form of {', '.join(FORMS)}. {REMEDY}")
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[forms.pop()]
    for path in files:
        yield from read(path, columns, optional)


def _cells(path: Path, number: int, found: dict[str, Any], columns: Sequence[str], optional: Sequence[str] = ()) -> Row:
    cells: dict[str, str] = {}
    for column in (*columns, *(column for column in optional if column in found)):
        if column not in found:
            raise row_error(path, number, f"it has no column '{column}' (it has: {', '.join(map(str, found))})")
        value = found[column]
        if value is None or isinstance(value, (list, dict)):
            raise row_error(path, number, f"'{column}' is {str(value)[:80]!r}, expected a text or a number")
        cells[column] = value if isinstance(value, str) else str(value)
    return Row(path, number, cells)


def _csv(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    """With a header; a quoted cell may hold line breaks."""
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path, "utf-8")), strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise row_error(path, number, f"it cannot be read as comma-separated cells ({error})") from None
        if not header:
            header = cells
        elif cells:
            if len(cells) != len(header):
                raise row_error(path, number, f"it has {len(cells)} cells, its header has {len(header)}")
            yield _cells(path, number, dict(zip(header, cells, strict=True)), columns, optional)


def _jsonl(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    for number, line in numbered_lines(path, "utf-8"):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise row_error(path, number, f"it is no JSON ({error})") from None
        if not isinstance(found, dict):
            raise row_error(path, number, "it is no JSON object")
        yield _cells(path, number, found, columns, optional)


def _parquet(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet files are read by pyarrow: type `pip install 'selfbench[text]'`.") from None
    number = 0
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if not set(columns) <= set(names):
            _cells(path, 1, dict.fromkeys(names, ""), columns)
        known = [column for column in (*columns, *optional) if column in names]
        for batch in file.iter_batches(columns=known):
            for found in batch.to_pylist():
                number += 1
                yield _cells(path, number, found, columns, optional)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataMissing(f"{path} cannot be read as parquet ({str(error)[:200]}). {REMEDY}") from None
