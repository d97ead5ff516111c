"""What one run is: the spec, its canonical form, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

Currency = Literal["passes", "tokens", "seconds"]
Precision = Literal["fp32", "tf32", "bf16"]
Device = Literal["cpu", "cuda"]
Generation = Literal["native", "vllm"]
SPEC_VERSION = 1
Scalar = bool | int | float | str


class Frozen(BaseModel):
    """A value object: unknown fields are errors, and nothing changes after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Budget(Frozen):
    """The limits of one run.

    `currency` is the primary one: `passes` (example passes: forward 1, backward 2), `tokens` (generated plus
    trained) or `seconds`; the run ends cleanly when `limit` of it is used. `wall_seconds` and `memory_mb`
    (MiB of resident memory of the method's process group) are hard limits enforced from outside.
    """

    currency: Currency = "passes"
    limit: float = Field(gt=0)
    wall_seconds: float = Field(default=600.0, gt=0)
    memory_mb: int = Field(default=4096, ge=256)


class TaskRef(Frozen):
    name: str
    version: str


class MethodRef(Frozen):
    """`params` holds every hyper-parameter, defaults included, so that a changed default is another run.

    One that was added after runs were recorded is left out where it has its default (`hyper`).
    """

    name: str
    version: str
    params: dict[str, Scalar] = Field(default_factory=dict)

    @field_validator("params")
    @classmethod
    def _sorted(cls, params: dict[str, Scalar]) -> dict[str, Scalar]:
        return dict(sorted(params.items()))


class RunSpec(Frozen):
    """One method on one task with one seed under one budget.

    `generation` is what a language model's samples come from (`suite/generation.py`). It was added after runs were
    recorded, and is left out of the canonical form where it is `native`.
    """

    schema_version: int = SPEC_VERSION
    task: TaskRef
    method: MethodRef
    seed: int = Field(ge=0)
    budget: Budget
    selection: str = "last"
    device: Device = "cpu"
    precision: Precision = "fp32"
    threads: int = Field(default=1, ge=1)
    generation: Generation = "native"

    @model_serializer(mode="wrap")
    def _without_what_is_native(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        if self.generation == "native":
            data.pop("generation", None)
        return data

    @property
    def run_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()[:16]

    @property
    def label(self) -> str:
        return f"{self.method.name} on {self.task.name}, seed {self.seed}"


def canonical(value: Any) -> bytes:
    """The one JSON form that is hashed: sorted keys, no blanks, finite numbers, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
