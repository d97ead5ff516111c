"""The layout of CIFAR-10-C and CIFAR-100-C: an array of all severities for each corruption, and one of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....suite.bundle import Array
from ....suite.errors import DataMissing

SEVERITIES = 5


def read_corruption(file: Path, severity: int, n: int = 10_000) -> Array:
    """The `n` images of one severity (1 to 5) in `<corruption>.npy`, uint8 (5 n, H, W, 3), as uint8 (n, 3, H, W).

    The file is mapped and only the asked slice is read. Raises `DataMissing` naming a file that is missing, torn or of
    another shape, and `ValueError` for another severity.
    """
    if not 1 <= severity <= SEVERITIES:
        raise ValueError(f"severity must lie in 1 to {SEVERITIES}, got {severity}")
    images = _mapped(file)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != SEVERITIES * n or images.shape[-1] != 3:
        raise DataMissing(
            f"{file} holds {images.dtype} {images.shape}, expected uint8 ({SEVERITIES * n}, H, W, 3). "
            "Get the file again."
        )
    return np.ascontiguousarray(images[(severity - 1) * n : severity * n].transpose(0, 3, 1, 2))


def read_labels(file: Path, n: int = 10_000) -> Array:
    """The classes int64 (n,), which `labels.npy` repeats for each severity; raises `DataMissing` as above."""
    labels = _mapped(file)
    whole = labels.shape == (SEVERITIES * n,) and np.issubdtype(labels.dtype, np.integer)
    if not whole or np.any(labels.reshape(SEVERITIES, n) != labels[:n]):
        raise DataMissing(
            f"{file} holds {labels.dtype} {labels.shape}, expected {n} classes, {SEVERITIES} times. Get the file again."
        )
    return np.asarray(labels[:n], np.int64)


def _mapped(file: Path) -> Array:
    try:
        found: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataMissing(f"{file} cannot be read as an array: {error}. Get the file again.") from None
    return found
