"""Readers of the binary layouts of STL-10 and SVHN. Those of CIFAR and of folders are in tasks/streams/layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...suite.bundle import Array
from ...suite.errors import DataMissing

STL_SIDE = 96


def read_stl_images(file: Path) -> Array:
    """Images uint8 (N, 3, 96, 96), mapped, of a file that holds them column by column.

    Raises `DataMissing` naming the file and the row, from 1, of an image that is cut off.
    """
    size = 3 * STL_SIDE * STL_SIDE
    length = file.stat().st_size
    if not length or length % size:
        raise DataMissing(
            f"{file}, row {length // size + 1} (from 1): {length % size:,} bytes of {size:,}. Get the file again."
        )
    raw: Array = np.memmap(file, np.uint8, mode="r")
    return raw.reshape(-1, 3, STL_SIDE, STL_SIDE).transpose(0, 1, 3, 2)


def read_stl_labels(file: Path, n: int) -> Array:
    """Classes int64 (n,), from 0, of a file that counts them from 1; raises `DataMissing` where there are not n."""
    labels = np.fromfile(file, np.uint8)
    if len(labels) != n:
        raise DataMissing(f"{file} has {len(labels):,} classes for {n:,} images. Get the file again.")
    return labels.astype(np.int64) - 1


def read_svhn(file: Path) -> tuple[Array, Array]:
    """Images uint8 (N, 3, 32, 32) and classes int64 (N,) of format 2, in which class 10 is the digit 0.

    Raises `DataMissing` naming a file that is torn or holds something else.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(file, variable_names=["X", "y"])
        images, labels = found["X"], found["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # a torn file fails in many ways
        what = str(error) or type(error).__name__
        raise DataMissing(f"{file} is no whole MATLAB file with X and y: {what}. Get the file again.") from None
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise DataMissing(
            f"{file} holds {images.dtype} {images.shape} and {len(labels):,} classes, expected uint8 (32, 32, 3, N) "
            "and N. Get the file again."
        )
    return images.transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels)
