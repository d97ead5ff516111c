"""What long calls of a policy have given in the round under way, on disk: a run that was killed repeats none of them.

<work>/rollouts/<round>-<call>.json holds the result of a call, what it was charged, step by step, and the seconds it
took; a digest of weights and arguments says of which call it is. All of it is a few megabytes of text at most, and goes
when the next round begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..files import write_atomic
from ..meter import Meter

WORTH_SECONDS = 1.0
"""A call that takes less is not worth a file."""

Charge = Callable[[int, int], None]
"""Told of sequences and tokens before the work on them."""
Kind = Literal["generated", "scored"]
"""What a call does with tokens."""


class Rollouts:
    """The calls of the rounds of one run; `call` gives what `work` gives, or gave before the run was killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._round = self._calls = 0

    def begin(self, number: int) -> None:
        """Begin a round; what is kept of others goes."""
        self._round, self._calls = number, 0
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                if not file.name.startswith(f"{number}-"):
                    file.unlink(missing_ok=True)

    def call(
        self, meter: Meter, kind: Kind, weights: Mapping[str, Tensor], about: Iterable[Any],
        work: Callable[[Charge], Any],
    ) -> Any:  # fmt: skip
        """The result of `work(charge)`, which can be written as JSON; `weights` and `about` are all that it depends on.

        A result from disk is charged, as tokens of a `kind`, and takes time as if it were computed now.
        """
        self._calls += 1
        file = self._folder / f"{self._round}-{self._calls}.json"
        found = _read(file)
        if found is not None and found["digest"] == _digest(weights, about):
            for sequences, tokens in found["charges"]:
                meter.charge(forward=sequences, **{kind: tokens})
            meter.add_seconds(found["seconds"])
            return found["result"]
        charges: list[tuple[int, int]] = []

        def charge(sequences: int, tokens: int) -> None:
            meter.charge(forward=sequences, **{kind: tokens})
            charges.append((sequences, tokens))

        started = time.perf_counter()
        result = work(charge)
        seconds = time.perf_counter() - started
        if seconds >= WORTH_SECONDS:
            made = {"digest": _digest(weights, about), "charges": charges, "seconds": seconds, "result": result}
            # A full disk costs what a killed run would be spared, not the run.
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomic(file, json.dumps(made).encode())
        return result


def _read(file: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(file.read_bytes())
        return found
    return None


def _digest(weights: Mapping[str, Tensor], about: Iterable[Any]) -> str:
    digest = hashlib.sha256(json.dumps(list(about)).encode())
    for name, value in weights.items():
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
