"""Checks of the tables that come with WILDS' data, before the package reads them: what is wrong, and in which row."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...suite.errors import DataMissing


@dataclass(frozen=True)
class Column:
    """A column of the table `file` and what it may hold: one of `values`, dates, or numbers from `low` to `high`.

    `date` is the format of `strptime` in which dates are written.

    `empty` allows cells without a value; `gapless` asks that every whole number from 0 to the largest is met.
    """

    file: str
    name: str
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    empty: bool = False
    gapless: bool = False
    date: str = ""


def check_tables(root: Path, columns: Sequence[Column]) -> None:
    """Raise `DataMissing` naming file, row and remedy for the first cell that is not as published.

    Rows are counted as a person counts the lines of records below the header, from 1.
    """
    import pandas

    for file in dict.fromkeys(column.file for column in columns):
        path, wanted = root / file, [column for column in columns if column.file == file]
        names = [column.name for column in wanted]
        try:
            table = pandas.read_csv(path, usecols=names, keep_default_na=False, na_values=[""], low_memory=False)
        except (OSError, ValueError, pandas.errors.ParserError) as error:
            raise DataMissing(f"{path} cannot be read as the published table: {error}. {REMEDY}") from None
        for column in wanted:
            _check(path, column, table[column.name])


REMEDY = "Unpack the published archive again."
COUNTED = "Rows count from 1, below the header."
_EXAMPLE = datetime.datetime(2013, 6, 5, 5, 44, 19)


def _check(path: Path, column: Column, cells: Any) -> None:
    missing = cells.isna().to_numpy()
    if column.values:
        good = cells.isin(list(column.values)).to_numpy()
        expected = "one of " + ", ".join(map(str, column.values[:6])) + (", ..." if len(column.values) > 6 else "")
    elif column.date:
        import pandas

        good = pandas.to_datetime(cells.astype(str), format=column.date, errors="coerce").notna().to_numpy()
        expected = f"a date such as {_EXAMPLE.strftime(column.date)}"
    else:
        import pandas

        numbers = pandas.to_numeric(cells, errors="coerce").to_numpy(np.float64)
        good = np.isfinite(numbers)
        with np.errstate(invalid="ignore"):
            good &= numbers >= (-np.inf if column.low is None else column.low)
            good &= numbers <= (np.inf if column.high is None else column.high)
        low = "-inf" if column.low is None else f"{column.low:g}"
        expected = f"a number from {low} to {'inf' if column.high is None else f'{column.high:g}'}"
    bad = np.flatnonzero(~(good | (missing if column.empty else False)))
    if len(bad):
        more = f" ({len(bad):,} rows in all)" if len(bad) > 1 else ""
        raise DataMissing(
            f"{path}, row {bad[0] + 1}: '{column.name}' is {cells.iloc[bad[0]]!r}, expected {expected}{more}. "
            f"{COUNTED} {REMEDY}"
        )
    if column.gapless:
        absent = np.setdiff1d(np.arange(int(numbers.max()) + 1), numbers)
        if len(absent):
            raise DataMissing(f"{path}: no row has the {column.name} {absent[0]}; rows are missing. {REMEDY}")


def check_files(root: Path, names: Sequence[str], table: str, tell: Callable[[str], None]) -> None:
    """Raise `DataMissing` when one of the pictures `names` (N,), paths below `root`, is not there."""
    absent = []
    for number, name in enumerate(names):
        if not (root / name).is_file():
            absent.append(number)
        if number % 50_000 == 0:
            tell(f"looking for pictures: {number:,} of {len(names):,}")
    if absent:
        raise DataMissing(
            f"{root / names[absent[0]]} is missing, and {len(absent):,} of the {len(names):,} pictures that {table} "
            f"names in all. {REMEDY}"
        )
