"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..bundle import Array

CUT_OFF = "…"
"""Ends the text of a response that was cut off before its stop symbol, so that no parser takes it for a whole one."""


class Tokenizer(Protocol):
    """Text to token ids and back. `pad` fills batches and is never generated, `stop` ends a response."""

    pad: int
    stop: int

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Ids int64 (N, L), padded on the right, and lengths int64 (N,); raises `ValueError` on other symbols."""

    def decode(self, ids: Array) -> list[str]:
        """The texts of ids (N, T) before their first stop; one without a stop ends in `CUT_OFF`."""


class CharTokenizer:
    """A token a character of `vocabulary` (ASCII): the first one pads and the second one stops."""

    pad = 0
    stop = 1

    def __init__(self, vocabulary: str) -> None:
        self._characters = np.frombuffer(vocabulary.encode("ascii"), np.uint8)
        self._ids = np.full(256, -1, np.int64)
        self._ids[self._characters] = np.arange(len(self._characters))
        self._ids[self._characters[: self.stop + 1]] = -1

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        lengths = np.array([len(text) for text in texts], np.int64)
        ids = np.full((len(texts), int(lengths.max(initial=0))), self.pad, np.int64)
        flat = self._ids[np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)]
        if (flat < 0).any():
            strange = next(text for text in texts if (self._ids[list(text.encode("latin-1", "replace"))] < 0).any())
            raise ValueError(f"{strange!r} has characters outside of the model's vocabulary")
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = flat
        return ids, lengths

    def decode(self, ids: Array) -> list[str]:
        stops = ids == self.stop
        ends = np.where(stops.any(axis=1), stops.argmax(axis=1), ids.shape[1])
        characters = np.where(np.arange(ids.shape[1]) < ends[:, None], self._characters[ids], 0)
        rows = np.ascontiguousarray(characters).view(f"S{ids.shape[1]}")[:, 0].tolist()
        whole = (ends < ids.shape[1]).tolist()
        return [row.decode("ascii") + ("" if stop else CUT_OFF) for row, stop in zip(rows, whole, strict=True)]
