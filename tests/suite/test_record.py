"""A record file is whole and unaltered, or it is no record and the error says which file and what to do."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import jsonschema
import pytest

from selfbench.suite import record as records
from selfbench.suite.errors import RecordError
from selfbench.suite.record import Cost, Point, Provenance, Record, decode, decode_with_json, encode, record_schema
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef, canonical

PUBLISHED = Path(__file__).parents[2] / "docs" / "record.schema.json"
WRITE_SCHEMA = (
    'python -c "import json; from selfbench.suite.record import record_schema; '
    'print(json.dumps(record_schema(), indent=1))" > docs/record.schema.json'
)


@pytest.fixture(scope="module")
def record() -> Record:
    spec = RunSpec(
        task=TaskRef(name="toy", version="1"),
        method=MethodRef(name="tent", version="1", params={"lr": 1e-3, "optimizer": "adam"}),
        seed=1,
        budget=Budget(limit=1000),
    )
    return Record(
        run_id=spec.run_id,
        spec=spec,
        status="ok",
        primary="error",
        metrics={"error": 0.1 + 0.2, "nll": 1e-17},
        n=1200,
        groups={"error": {"fog": 0.25, "brouillard épais": 1 / 3}},
        curve=[Point(x=20.0, values={"error": 0.3}), Point(x=40.0, values={"error": 0.2})],
        diagnostics={"selected_at": 40.0},
        predictions_sha256="0" * 64,
        cost=Cost(forward=600, backward=200, passes=1000, seconds=0.123456789),
        provenance=Provenance(
            created="2025-01-01T00:00:00+00:00",
            selfbench="0.1.0",
            method_sha256="1" * 64,
            task_sha256="2" * 64,
            bundle_sha256="3" * 64,
            python="3.11.0",
            packages={"torch": "2.4.0"},
            platform="Linux x86_64",
            processor="one of many",
            command="selfbench run -t toy -m tent -s 1",
        ),
    )


def signed(data: dict) -> bytes:
    """A file with a right digest, whatever its content."""
    return json.dumps(data | {"sha256": hashlib.sha256(canonical(data)).hexdigest()}).encode()


def content(record: Record) -> dict:
    return record.model_dump(mode="json")


def test_encode_and_decode_are_inverse(record: Record) -> None:
    raw = encode(record)
    assert decode(raw) == record
    assert encode(decode(raw)) == raw
    assert decode_with_json(raw) == (record, canonical(content(record)))


def test_no_flipped_bit_goes_unseen(record: Record) -> None:
    """A flip is refused, or it turned one blank into another and the record is the same."""
    raw = encode(record)
    rng = random.Random(0)
    refused = 0
    for place in rng.sample(range(len(raw)), 400):
        for mask in (1 << rng.randrange(8), rng.randrange(1, 256)):
            altered = raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :]
            try:
                assert decode(altered) == record
            except RecordError:
                refused += 1
            else:
                assert raw[place : place + 1].isspace()
    assert refused > 500


def test_no_torn_file_passes(record: Record) -> None:
    raw = encode(record)
    body = raw.rstrip()
    for size in {0, 1, len(body) - 1, *range(2, len(body), 37)}:
        with pytest.raises(RecordError, match=r"torn\.json .*run again"):
            decode(raw[:size], "torn.json")
    decode(body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"17",
        b"\xff\xfe",
        b"{}",
        b'{"sha256": "x"}',
        b'{"sha256": "x", "schema_version": Infinity}',
        b'{"sha256": "x", "schema_version": "one"}',
        b'{"sha256": "x", "schema_version": 1, "n": NaN}',
        b'{"sha256": "x", "schema_version": 1, "n": ' + b"9" * 5000 + b"}",
        b'{"sha256": "x", "schema_version": 1, "n": "\\ud800"}',
        b'{"sha256": "x", "schema_version": 1, "n": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=range(13),
)
def test_what_is_no_record_is_named(raw: bytes) -> None:
    with pytest.raises(RecordError, match=r"^some/where\.json "):
        decode(raw, "some/where.json")


def test_an_edited_number_is_an_altered_record(record: Record) -> None:
    raw = encode(record).replace(b'"n": 1200', b'"n": 1201')
    with pytest.raises(RecordError, match="altered after the run"):
        decode(raw)


def test_a_record_of_a_newer_schema_asks_for_an_upgrade(record: Record) -> None:
    data = content(record) | {"schema_version": records.RECORD_VERSION + 1, "unheard_of": 1}
    with pytest.raises(RecordError, match=f"has schema {records.RECORD_VERSION + 1}.*upgrade"):
        decode(signed(data))


def test_a_schema_that_never_was_is_refused(record: Record) -> None:
    with pytest.raises(RecordError, match="has schema 0"):
        decode(signed(content(record) | {"schema_version": 0}))


def test_old_records_are_migrated_step_by_step(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(data: dict) -> dict:
        return {("primary" if key == "ranked" else key): value for key, value in data.items()} | {"schema_version": 0}

    old = {("ranked" if key == "primary" else key): value for key, value in content(record).items()}
    monkeypatch.setattr(
        records, "MIGRATIONS", {-1: rename, 0: lambda data: data | {"schema_version": records.RECORD_VERSION}}
    )
    migrated, body = decode_with_json(signed(old | {"schema_version": -1}))
    assert migrated == record
    assert body == canonical(content(record))


def test_the_run_id_must_be_that_of_the_spec(record: Record) -> None:
    with pytest.raises(RecordError, match=f"names run {'f' * 16}, but its spec is run {record.run_id}"):
        decode(signed(content(record) | {"run_id": "f" * 16}))
    another_seed = content(record)
    another_seed["spec"]["seed"] = 2
    with pytest.raises(RecordError, match="but its spec is run"):
        decode(signed(another_seed))


@pytest.mark.parametrize(
    ("path", "value"),
    [("status", "great"), ("metrics", {"error": "low"}), ("n", 0.5), ("colour", "red"), ("primary", None)],
)
def test_a_field_amiss_is_named(record: Record, path: str, value: object) -> None:
    with pytest.raises(RecordError, match=f"x.json: field '{path}"):
        decode(signed(content(record) | {path: value}), "x.json")


def test_results_are_all_but_measured_resources_and_provenance(record: Record) -> None:
    slower = record.model_copy(update={"cost": record.cost.model_copy(update={"seconds": 9.0, "peak_memory_mb": 5.0})})
    assert slower.results() == record.results()
    for update in (
        {"metrics": {"error": 0.3}},
        {"predictions_sha256": "4" * 64},
        {"curve": record.curve[:1]},
        {"cost": record.cost.model_copy(update={"passes": 999.0})},
        {"cost": record.cost.model_copy(update={"validation_calls": 1})},
        {"cost": record.cost.model_copy(update={"scored_tokens": 1})},
    ):
        assert record.model_copy(update=update).results() != record.results()


def test_tokens_told_apart_add_up() -> None:
    """Records from before they were told apart have their sum alone."""
    assert Cost(tokens=6).tokens_apart == (0, 0, 0)
    assert Cost(tokens=6, generated_tokens=1, scored_tokens=2, trained_tokens=3).tokens_apart == (1, 2, 3)
    for wrong in (5, 7, 0):
        with pytest.raises(ValueError, match=f"{wrong} tokens are not the sum of"):
            Cost(tokens=wrong, generated_tokens=1, scored_tokens=2, trained_tokens=3)


def test_a_record_of_before_a_field_was_kept_is_as_good(record: Record) -> None:
    data = content(record)
    for name in (*records.TOKENS, "preparation_seconds"):
        del data["cost"][name]
    del data["data_facts"]
    old = json.dumps(data | {"sha256": hashlib.sha256(canonical(data)).hexdigest()}, indent=1, sort_keys=True)
    assert decode(old.encode()) == record
    jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text())).validate(json.loads(old))


def test_the_published_schema_is_that_of_the_model() -> None:
    assert json.loads(PUBLISHED.read_text()) == record_schema(), f"the record changed; type: {WRITE_SCHEMA}"


def test_the_published_schema_accepts_records_and_nothing_else(record: Record) -> None:
    schema = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = json.loads(encode(record))
    validator.validate(good)
    for bad in (
        {key: value for key, value in good.items() if key != "sha256"},
        {key: value for key, value in good.items() if key != "provenance"},
        good | {"status": "great"},
        good | {"colour": "red"},
        good | {"sha256": "short"},
    ):
        assert not validator.is_valid(bad)
