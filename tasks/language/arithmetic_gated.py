"""The additions of `arithmetic-tiny-unverified`, where a judge has to show what it is worth before it is used."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...suite.bundle import BundleFolder
from ...suite.protocols.policy import Problems
from ...suite.registry import register_task
from ...suite.seeds import rng
from .arithmetic_tiny import DEMONSTRATIONS, POOL, TEST, ArithmeticTinyUnverified

PROBED = 200


@register_task(
    "arithmetic-tiny-gated",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by a small language model, without a verifier; judges pass a gate",
    budget={"currency": "tokens", "limit": 3000000, "wall_seconds": 300.0},
    data=(),
    grants=("judge", "shots", "attempts", "steps", "solutions"),
    tags=("judge-gate",),
    bundle="arithmetic-tiny",
)
class ArithmeticTinyGated(ArithmeticTinyUnverified):
    """200 labelled problems beside those of `arithmetic-tiny-unverified`, which the harness keeps: in every round, a
    method's judge is asked about right and wrong responses of the policy to them, in both orders, and its preferences
    are used only where it beats a heuristic of length and position. Methods that ask no judge are as they are there."""

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        others = np.arange(DEMONSTRATIONS + TEST, len(bundle.public()["terms"]))
        probe = rng(seed, "arithmetic-tiny", "pool").permutation(others)[POOL : POOL + PROBED]
        return dataclasses.replace(super().problems(bundle, seed), probe=np.sort(probe))
