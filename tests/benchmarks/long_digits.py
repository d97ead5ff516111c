"""The stream of digits over and over, long enough that the harness' share can be measured."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from selfbench import register_task
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.protocols.stream import Stream, even_cuts
from selfbench.tasks.streams.digits_c import BATCH_SIZE, DigitsCContinual


class _Rounds(DigitsCContinual):
    rounds: ClassVar[int]

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        once = super().stream(bundle, seed)
        indices = np.tile(once.indices, self.rounds)
        return Stream(
            indices, even_cuts(len(indices), BATCH_SIZE), np.tile(once.domains, self.rounds), once.domain_names
        )


@register_task(
    "digits-c-sixty-rounds", protocol="stream", version="1", metric="error", title="Sixty rounds of the digits",
    budget={"currency": "passes", "limit": 1e9, "wall_seconds": 3600.0}, data=("digits",),
    grants=("norm-layers", "batch-norm"), bundle="digits-c-rounds",
)  # fmt: skip
class SixtyRounds(_Rounds):
    """For methods that only predict."""

    rounds: ClassVar[int] = 60


@register_task(
    "digits-c-twenty-rounds", protocol="stream", version="1", metric="error", title="Twenty rounds of the digits",
    budget={"currency": "passes", "limit": 1e9, "wall_seconds": 3600.0}, data=("digits",),
    grants=("norm-layers", "batch-norm"), bundle="digits-c-rounds",
)  # fmt: skip
class TwentyRounds(_Rounds):
    """For methods that train as they predict."""

    rounds: ClassVar[int] = 20
