"""The short cut of decoding gives what the long way gives, and takes nothing for a record that the long way refuses."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from selfbench.suite import record as records
from selfbench.suite.errors import RecordError
from selfbench.suite.record import Record, decode_with_json, encode

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
generated = importlib.import_module("generated_records")


@pytest.fixture(scope="module")
def record() -> Record:
    return generated.make_record("digits-c-continual", "tent", 0, 0)


def with_reason(record: Record, reason: str) -> Record:
    return record.model_copy(update={"reason": reason})


def test_files_as_written_take_the_short_cut(record: Record) -> None:
    raw = encode(record)
    assert records._decode_as_written(raw) == records._decode_any_layout(raw, "x") == decode_with_json(raw)
    assert decode_with_json(raw)[0] == record


@pytest.mark.parametrize(
    "reason",
    [": a colon first", 'a "quoted": word', "two\nlines\n  indented", "brouillard épais", '\n "sha256": "', "", "   "],
)
def test_texts_that_look_like_layout_are_kept(record: Record, reason: str) -> None:
    changed = with_reason(record, reason)
    raw = encode(changed)
    assert decode_with_json(raw) == records._decode_any_layout(raw, "x")
    assert decode_with_json(raw)[0] == changed


def test_other_layouts_are_read_the_long_way(record: Record) -> None:
    raw = json.dumps(json.loads(encode(record)), indent=4).encode()
    assert records._decode_as_written(raw) is None
    assert decode_with_json(raw)[0] == record


def test_every_changed_byte_is_noticed(record: Record) -> None:
    raw = encode(record)
    for at in range(0, len(raw), 97):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            again = decode_with_json(changed)[0]
        except RecordError:
            continue
        # Only layout can change without changing the record.
        assert again == record
        assert raw[at : at + 1].isspace() or changed[at : at + 1].isspace()
