"""Text files with one example a line: what is wrong is said with file and row."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfbench.suite.errors import DataMissing
from selfbench.tasks.text import rows
from selfbench.tasks.text.rows import read_csv, read_delimited, unique

COLUMNS = ("label", "text")


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "texts.tsv"
    path.write_bytes(content)
    return path


def test_rows_keep_their_numbers_and_the_last_column_its_delimiters(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"header\n\none\ta\tb \r\n\r\ntwo\tc\xc3\xa9\n")
    found = list(read_delimited(file, COLUMNS, skip=1))
    assert [(row.number, row.cells["label"], row.text("text")) for row in found] == [
        (3, "one", "a\tb"),
        (5, "two", "cé"),
    ]


def test_quoted_cells_are_read(tmp_path: Path) -> None:
    file = file_of(tmp_path, b'"3","a, ""b""","c"\n"4","d","e"\n')
    found = [tuple(row.cells.values()) for row in read_csv(file, ("label", "title", "text"))]
    assert found == [("3", 'a, "b"', "c"), ("4", "d", "e")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\ttext\ngood\n", r"texts\.tsv, row 2: it has no column 'text' \(1 of 2 columns\)\. Fetch or place"),
        (b"good\ttext\ngod\ttext\n", r"row 2: 'label' is 'god', expected one of good, bad\. Did you mean 'good'\?"),
        (b"good\ttext\nbad\t \t\n", r"row 2: 'text' is empty"),
        (b"good\tcaf\xe9\n", r"row 1: byte 0xe9 in column 9 is not utf-8"),
        (b"good\ttext\nbad\tte\x00xt\n", r"row 2: it holds a zero byte"),
        (b"good\ttext\nbad\t" + b"a" * 2000 + b"\n", r"row 2: the line is longer than 1,000 bytes"),
        (b"", r"texts\.tsv is empty"),
    ],
    ids=["column", "label", "text", "encoding", "binary", "long", "empty"],
)
def test_file_and_row_of_what_is_wrong_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(rows, "LONGEST", 1000)
    file = file_of(tmp_path, content)

    def read() -> list[tuple[str, str]]:
        return [(row.one_of("label", ("good", "bad")), row.text("text")) for row in read_delimited(file, COLUMNS)]

    with pytest.raises(DataMissing, match=message):
        read()


def test_a_long_line_is_not_read_into_memory(tmp_path: Path) -> None:
    """A sparse gigabyte without a line's end."""
    file = tmp_path / "texts.tsv"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 30)
    with pytest.raises(DataMissing, match="row 1: the line is longer than 1,000,000 bytes"):
        list(read_delimited(file, COLUMNS))


def test_utf8_where_latin1_is_published_is_found(tmp_path: Path) -> None:
    (row,) = read_delimited(file_of(tmp_path, b"good\tcaf\xe9\n"), COLUMNS, encoding="latin-1")
    assert row.text("text") == "café"
    with pytest.raises(DataMissing, match="row 1: it is utf-8, expected latin-1"):
        list(read_delimited(file_of(tmp_path, "good\tcafé\n".encode()), COLUMNS, encoding="latin-1"))


def test_cells_that_are_no_csv(tmp_path: Path) -> None:
    for content, message in (
        (b'"1","a"\n"2","b\n', "row 2: it cannot be read as comma-separated cells"),
        (b'"1","a"\n"2","b","c"\n', "row 2: it has 3 columns, expected 2"),
        (b'"1"\n', r"row 1: it has no column 'text' \(1 of 2 columns\)"),
    ):
        with pytest.raises(DataMissing, match=message):
            list(read_csv(file_of(tmp_path, content), COLUMNS))


@pytest.mark.parametrize("cell", ["4.5", "-5", "nan", "inf", "much", ""])
def test_numbers_out_of_range(tmp_path: Path, cell: str) -> None:
    (row,) = read_delimited(file_of(tmp_path, f"{cell}\ttext\n".encode()), COLUMNS)
    with pytest.raises(DataMissing, match=f"row 1: 'label' is '{cell}', expected a number from -4 to 4"):
        row.number_within("label", -4.0, 4.0)


def test_numbers_within_range(tmp_path: Path) -> None:
    read = read_delimited(file_of(tmp_path, b"-4\ta\n2.5e-1\tb\n"), COLUMNS)
    assert [row.number_within("label", -4.0, 4.0) for row in read] == [-4.0, 0.25]


def test_ids_that_two_rows_share(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"1\ta\n2\tb\n1\tc\n")
    with pytest.raises(DataMissing, match="row 3: 'label' is '1' as in row 1"):
        list(unique(read_delimited(file, COLUMNS), "label"))
    assert len(list(unique(read_delimited(file, COLUMNS), "text"))) == 3
