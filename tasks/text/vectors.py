"""Sentence vectors that are computed once: kept by their digest, in parts, so that a stop loses seconds and no more."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...suite.bundle import Array
from ...suite.files import locked, write_atomic

PART = 128
"""Texts in a part: seconds of work at most, and a multiple of the encoder's batch, so that parts change no batch."""

Encode = Callable[[Array, Callable[[int], None]], Array]
"""The vectors (R, D) of the rows (R,); the function given hears how many of them are done."""


def kept_vectors(
    kept: Path, lengths: Array, encode: Encode, tell: Callable[[int], None] = lambda done: None
) -> tuple[Array, float]:
    """The vectors (N, D) in the file `kept`, and the seconds that they took when they were made.

    `encode` is called on the rows that are missing, of texts of `lengths` (N,), the longest first. `tell` hears the
    number of texts done. Two processes that want the same vectors wait for each other.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(kept.with_suffix(".lock")):
        if not kept.is_file():
            folder = kept.with_suffix(".parts")
            order = np.argsort(-lengths, kind="stable")
            parts, seconds = zip(*_parts(folder, order, encode, tell), strict=True)
            vectors = np.concatenate(parts)
            restored = np.empty_like(vectors)
            restored[order] = vectors
            write_atomic(kept, _packed(vectors=restored, seconds=np.float64(sum(seconds))))
            shutil.rmtree(folder)
    with np.load(kept, allow_pickle=False) as file:
        return file["vectors"], float(file["seconds"])


def _parts(folder: Path, order: Array, encode: Encode, tell: Callable[[int], None]) -> Iterator[tuple[Array, float]]:
    for start in range(0, len(order), PART):
        path, rows = folder / f"{start:08d}.npz", order[start : start + PART]
        if not path.is_file():
            began = time.perf_counter()
            vectors = encode(rows, lambda done, start=start: tell(start + done))  # type: ignore[misc]
            seconds = time.perf_counter() - began
            write_atomic(path, _packed(vectors=vectors, seconds=np.float64(seconds)))
        tell(start + len(rows))
        with np.load(path, allow_pickle=False) as file:
            yield file["vectors"], float(file["seconds"])


def _packed(**arrays: Array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
