"""Arrays too large for memory, written once and moved into the bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ....suite.bundle import Array
from ....suite.places import cache_folder


def written(shape: Sequence[int], fill: Callable[[Array], None]) -> Path:
    """A .npy file of uint8 `shape`, mapped while `fill` writes it; nothing stays behind where that fails."""
    folder = cache_folder() / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".decoding-", suffix=".npy", delete=False) as file:
        path = Path(file.name)
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tuple(shape))
        fill(array)
        array.flush()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
