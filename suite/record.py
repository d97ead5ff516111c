"""The record of one run: schema, digest, migrations. One JSON file, immutable once written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from .errors import RecordError
from .spec import Frozen, RunSpec, canonical

RECORD_VERSION = 1
TOKENS = ("generated_tokens", "scored_tokens", "trained_tokens")
Status = Literal["ok", "failed", "timeout", "oom"]


class Point(Frozen):
    """One point of a curve: where in the run it was taken, and the scores there.

    `x` is the used primary currency (adaptation), the index of the last image (stream), or the round (policy).
    """

    x: float
    values: dict[str, float]


class Cost(Frozen):
    """Counted work and measured resources; evaluation is off the clock.

    `passes` = forward + 2 * backward, in example passes. Seconds are wall seconds of the method's own work,
    `setup_seconds` the harness's around it, `preparation_seconds` what the task's data and frozen features took once,
    for all runs that use them. Memory is the peak resident set of the method process in MiB.

    `tokens` is the sum of those that were generated, scored and trained on; all three are 0 in records from before they
    were told apart.
    """

    forward: float = 0
    backward: float = 0
    passes: float = 0
    tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    labels: int = 0
    validation_calls: int = 0
    seconds: float = 0
    gpu_seconds: float = 0
    setup_seconds: float = 0
    preparation_seconds: float = 0
    peak_memory_mb: float = 0
    peak_gpu_memory_mb: float = 0

    @property
    def tokens_apart(self) -> tuple[int, int, int]:
        """Generated, scored and trained ones."""
        return self.generated_tokens, self.scored_tokens, self.trained_tokens

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if any(self.tokens_apart) and sum(self.tokens_apart) != self.tokens:
            raise ValueError(f"{self.tokens} tokens are not the sum of {self.tokens_apart}")
        return self


class Provenance(Frozen):
    """Where the numbers came from."""

    created: str
    selfbench: str
    git_commit: str | None = None
    git_dirty: bool | None = None
    method_sha256: str
    task_sha256: str
    bundle_sha256: str
    source_sha256: dict[str, str] = Field(default_factory=dict)
    """By part: the source's own images, and its posterior, where they lie apart from the bundle and were shown."""
    stream_sha256: str | None = None
    python: str
    packages: dict[str, str]
    platform: str
    processor: str
    gpu: str | None = None
    command: str
    attempt: int = 1
    resumed: int = 0


class Record(Frozen):
    """The immutable result of one run.

    `metrics` holds one number per metric over the whole evaluation set, `groups` the same by domain or class,
    `primary` the metric that ranks. `diagnostics` are computed by the scorer and were never shown to the method.
    `data_facts` are counts of what the parts of the task's data share or repeat (`data_facts.py`).
    """

    schema_version: int = RECORD_VERSION
    run_id: str
    spec: RunSpec
    status: Status
    reason: str = ""
    primary: str
    metrics: dict[str, float] = Field(default_factory=dict)
    n: int = 0
    groups: dict[str, dict[str, float]] = Field(default_factory=dict)
    curve: list[Point] = Field(default_factory=list)
    diagnostics: dict[str, float] = Field(default_factory=dict)
    data_facts: dict[str, int | float] = Field(default_factory=dict)
    budget_used_up: bool = False
    predictions_sha256: str | None = None
    cost: Cost = Cost()
    provenance: Provenance

    @property
    def started(self) -> bool:
        """Whether the run began: of one whose preparation failed, the record names no data that it was made of."""
        return bool(self.provenance.bundle_sha256)

    def results(self) -> dict[str, Any]:
        """What equal specs must reproduce exactly on the CPU: everything but measured resources and provenance."""
        data = self.model_dump(mode="json", exclude={"provenance", "cost"})
        counted = {"forward", "backward", "passes", "tokens", *TOKENS, "labels", "validation_calls"}
        return data | {"cost": self.cost.model_dump(include=counted)}


_DIGEST_KEY = b'\n "sha256": "'
_LAYOUT = re.compile(rb"\n *")

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Pure functions from the data of schema version n to that of n + 1."""


def encode(record: Record) -> bytes:
    """Serialise with the digest of the content, so that a torn or edited file cannot pass for a record."""
    data = record.model_dump(mode="json")
    digest = hashlib.sha256(canonical(data)).hexdigest()
    return json.dumps(data | {"sha256": digest}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def decode(raw: bytes, where: str = "record") -> Record:
    """Parse and verify one record file; raise `RecordError` that says what is wrong with which file."""
    return decode_with_json(raw, where)[0]


def decode_with_json(raw: bytes, where: str = "record") -> tuple[Record, bytes]:
    """`decode`, and the record's canonical JSON, which verifying it makes anyway."""
    return _decode_as_written(raw) or _decode_any_layout(raw, where)


def _decode_as_written(raw: bytes) -> tuple[Record, bytes] | None:
    """The record of a file in the layout and schema that `encode` writes today, else None; for speed alone.

    Without its layout such a file is the canonical JSON already, which spares making it anew. A text that looks like
    layout, or is not plain ASCII, comes out wrong here: then the digest does not match, and the slow way decides.
    """
    at = raw.find(_DIGEST_KEY)
    start, end = at + len(_DIGEST_KEY), at + len(_DIGEST_KEY) + 64
    if at < 0 or raw[end : end + 2] != b'",':
        return None
    content = _LAYOUT.sub(b"", raw[:at] + raw[end + 2 :]).replace(b'": ', b'":')
    if hashlib.sha256(content).hexdigest().encode() != raw[start:end]:
        return None
    try:
        record = Record.model_validate_json(content)
    except ValidationError:
        return None
    good = record.schema_version == RECORD_VERSION and record.run_id == record.spec.run_id
    return (record, content) if good else None


def _decode_any_layout(raw: bytes, where: str) -> tuple[Record, bytes]:
    try:
        data = from_json(raw, allow_inf_nan=False)
        claimed = data.pop("sha256")
        version = int(data["schema_version"])
        content = canonical(data)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecordError(f"{where} is no record ({type(error).__name__}: {error}). Remove it and run again.") from None
    if hashlib.sha256(content).hexdigest() != claimed:
        raise RecordError(f"{where} does not match its digest: it was altered after the run. Remove it and run again.")
    if version > RECORD_VERSION:
        raise RecordError(f"{where} has schema {version}, this selfbench reads up to {RECORD_VERSION}: upgrade it.")
    if version < min((RECORD_VERSION, *MIGRATIONS)):
        raise RecordError(f"{where} has schema {version}, which never was. Remove it and run again.")
    if version < RECORD_VERSION:
        while version < RECORD_VERSION:
            data, version = MIGRATIONS[version](data), version + 1
        content = canonical(data)
    try:
        record = Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(f"{where}: field '{place}': {first['msg']}.") from None
    if record.run_id != record.spec.run_id:
        raise RecordError(f"{where} names run {record.run_id}, but its spec is run {record.spec.run_id}.")
    return record, content


def record_schema() -> dict[str, Any]:
    """The JSON Schema of a record file, published as `docs/record.schema.json` (a test compares them)."""
    schema = Record.model_json_schema()
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$", "title": "SHA-256 of the canonical JSON of the rest"}
    schema["properties"] |= {"sha256": digest}
    schema["required"] = ["schema_version", *schema["required"], "sha256"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
