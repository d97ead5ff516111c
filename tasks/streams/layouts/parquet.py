"""Parquet as on the data hub: a column of image files and one of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....suite.bundle import Array
from ....suite.errors import DataMissing, UsageError
from .decode import decode


def read_parquet(path: Path, image: str = "img", label: str = "label", limit: int | None = None) -> tuple[Array, Array]:
    """The first `limit` rows: images uint8 (N, 3, H, W), all of one size, and classes int64 (N,).

    Raises `DataMissing` naming a file that is torn, or the row, from 1, of an image that is, and `UsageError` where the
    library is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError("Parquet files are read by pyarrow: type `pip install 'selfbench[images]'`.") from None
    try:
        table = parquet.read_table(path, columns=[image, label]).slice(0, limit)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataMissing(f"{path} cannot be read: {str(error).splitlines()[0]} Get the file again.") from None
    files = [row["bytes"] for row in table.column(image).to_pylist()]
    first = decode(files[0], f"{path}, row 1 (from 1)")
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, content in enumerate(files):
        images[row] = decode(content, f"{path}, row {row + 1} (from 1)")
    return images, np.array(table.column(label).to_numpy(), np.int64)
