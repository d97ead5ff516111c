"""The binary version of CIFAR-10 and CIFAR-100: a record an image, its classes in the first bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....suite.bundle import Array
from ....suite.errors import DataMissing

PIXELS = 3 * 32 * 32


def read_binary(file: Path, label_bytes: int) -> tuple[Array, Array]:
    """Images uint8 (N, 3, 32, 32) and classes int64 (N,), the last of `label_bytes` (CIFAR-10: 1, CIFAR-100: 2).

    Raises `DataMissing` naming the file and the row, from 1, of a record that is cut off.
    """
    raw, size = np.fromfile(file, np.uint8), label_bytes + PIXELS
    if not len(raw) or len(raw) % size:
        raise DataMissing(
            f"{file}, row {len(raw) // size + 1} (from 1): {len(raw) % size:,} bytes of {size:,}, which are no whole "
            "records. Get the file again."
        )
    records = raw.reshape(-1, label_bytes + PIXELS)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].astype(np.int64)
