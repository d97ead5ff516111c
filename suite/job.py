"""A job: one run as it is handed to a worker. A JSON value, so that every engine passes it the same way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .spec import RunSpec

BUSY = 75
"""Exit code of a worker that found the run claimed by another worker."""
IO_ERROR = 74
"""Exit code of a worker that could not write."""


@dataclass(frozen=True)
class Job:
    """`spec` and where its record goes; the rest changes no result.

    `code`: git commit and dirty flag of the caller's checkout. `bundle`: where the task's data lies, `frozen`: parts
    of the cache of what no method changes, `source`: the parts of the source that the task keeps apart from its bundle
    and the method needs, `decoded`: where pictures of the task are kept decoded. `unprepared`: status and reason of the
    record where these could not be made; nothing is run. `replace`: run although a record exists (retry). `permute`:
    shuffle the hidden labels by this seed, for the leak check. `gpu`: index of the device, None for the CPU.
    """

    spec: dict[str, Any]
    results: str
    command: str
    code: dict[str, Any]
    bundle: str = ""
    attempt: int = 1
    replace: bool = False
    permute: int | None = None
    gpu: int | None = None
    checkpoint_seconds: float = 30.0
    frozen: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    decoded: str = ""
    unprepared: dict[str, str] = field(default_factory=dict)

    @property
    def run_spec(self) -> RunSpec:
        return RunSpec.model_validate(self.spec)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text()))
