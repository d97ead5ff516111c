"""What tasks would keep of their decoded pictures, and the bound on all of it: known without a heavy import."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from .. import registry

LIMIT_GB = 64.0
"""How much the cache may hold, unless `SELFBENCH_DECODED_GB` says otherwise; 0 turns it off."""


@dataclass(frozen=True)
class Decoded:
    """`pictures` rows of `shape` and `dtype`, "uint8" or another type whose name ends in its bits."""

    pictures: int
    shape: tuple[int, ...]
    dtype: str = "uint8"

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * int("".join(filter(str.isdigit, self.dtype))) // 8

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.pictures * self.row


def declared(task: registry.Entry) -> Decoded | None:
    """What the registration of a task says, of the published data; None where it decodes nothing."""
    option = task.options["decoded"]
    return None if option is None else Decoded(**option)


def limit_bytes() -> float:
    """The bound on the cache in bytes."""
    return 1e9 * float(os.environ.get("SELFBENCH_DECODED_GB") or LIMIT_GB)
