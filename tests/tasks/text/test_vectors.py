"""Vectors are computed once, in parts that survive a stop, whatever the order of the texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfbench.tasks.text import vectors
from selfbench.tasks.text.vectors import kept_vectors

LENGTHS = np.array([3, 9, 1, 9, 5, 2, 7])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PART", 2)


class Counting:
    """Vectors that tell their row; stops like a killed process at the call number `stop`."""

    def __init__(self, stop: int = -1) -> None:
        self.asked: list[list[int]] = []
        self.stop = stop

    def __call__(self, rows: np.ndarray, tell: Callable[[int], None]) -> np.ndarray:
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(rows.tolist())
        tell(1)
        return np.stack([rows, LENGTHS[rows]], axis=1).astype(np.float32)


def test_rows_stand_in_the_order_of_the_texts_and_are_made_longest_first(tmp_path: Path) -> None:
    encode, told = Counting(), []
    found, seconds = kept_vectors(tmp_path / "v" / "a.npz", LENGTHS, encode, told.append)
    np.testing.assert_array_equal(found, np.stack([np.arange(7), LENGTHS], axis=1))
    assert encode.asked == [[1, 3], [6, 4], [0, 5], [2]]
    assert told == [1, 2, 3, 4, 5, 6, 7, 7]
    assert seconds > 0


def test_a_stop_loses_the_part_under_way_alone(tmp_path: Path) -> None:
    kept = tmp_path / "a.npz"
    first = Counting(stop=2)
    with pytest.raises(KeyboardInterrupt):
        kept_vectors(kept, LENGTHS, first)
    assert not kept.exists()
    second = Counting()
    found, _ = kept_vectors(kept, LENGTHS, second)
    assert first.asked + second.asked == [[1, 3], [6, 4], [0, 5], [2]]
    np.testing.assert_array_equal(found[:, 0], np.arange(7))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npz"]


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    kept = tmp_path / "a.npz"
    made, seconds = kept_vectors(kept, LENGTHS, Counting())
    again, then = kept_vectors(kept, LENGTHS, Counting(stop=0))
    np.testing.assert_array_equal(again, made)
    assert then == seconds
