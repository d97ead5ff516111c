"""The additions of `addition-smol` without a verifier, where a judge has to show what it is worth before it is used."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...suite.bundle import BundleFolder
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants
from ...suite.registry import register_task
from ...suite.seeds import rng
from .addition_smol import MOST_SHOWN, POOL, TEST, AdditionSmol
from .pretrained import split_by_seed

PROBED = 200


@register_task(
    "addition-smol-gated",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by SmolLM2-135M with adapters, without a verifier; judges pass a gate",
    budget={"currency": "tokens", "limit": 600000, "wall_seconds": 3600.0, "memory_mb": 6144},
    data=("smollm2",),
    grants=("judge", "shots", "attempts", "solutions"),
    tags=("adapters", "judge-gate"),
    bundle="addition-smol-gated",
)
class AdditionSmolGated(AdditionSmol):
    """Demonstrations, pool and test of `addition-smol`, no verifier, and 200 labelled problems that the harness keeps.

    In every round a method's judge is asked about right and wrong responses of the policy to these, in both orders, and
    its preferences are used only where it beats a heuristic of length and position. Further attempts and feedback are
    turns of the same chat: `Is this right?`, to which `Right.` or `Wrong.` is the reply, and `Try again.` Methods that
    ask no judge are as they are without the gate.
    """

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        others = np.arange(TEST, len(bundle.public()["terms"]))
        # The parts that come first are those of `addition-smol`.
        *_, probe = split_by_seed(
            others, rng(seed, "addition-smol", "split"), self.shown, MOST_SHOWN - self.shown, POOL, PROBED
        )
        return dataclasses.replace(super().problems(bundle, seed), probe=probe)

    def grants(self) -> Grants:
        return dataclasses.replace(super().grants(), verifier=None, answers=None)
