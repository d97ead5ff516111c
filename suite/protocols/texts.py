"""Texts as arrays, for bundles and for the line: uint8 (N, L), UTF-8, padded with zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..bundle import Array


def pack(texts: Sequence[str]) -> Array:
    """Texts without the character NUL as uint8 (N, L); L is the longest one's number of bytes, at least 1."""
    if not len(texts):
        return np.zeros((0, 1), np.uint8)
    encoded = np.array([text.encode() for text in texts], dtype=np.bytes_)
    return encoded.view(np.uint8).reshape(len(texts), max(1, encoded.dtype.itemsize))


def unpack(packed: Array) -> list[str]:
    """The texts in uint8 (N, L); bytes that are no UTF-8 become U+FFFD. Raises `ValueError` on another form."""
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise ValueError(f"texts are uint8 (N, L), got {packed.dtype} {packed.shape}")
    if not packed.size:
        return [""] * len(packed)
    rows = np.ascontiguousarray(packed).view(f"S{packed.shape[1]}")[:, 0]
    return [row.decode(errors="replace") for row in rows.tolist()]
