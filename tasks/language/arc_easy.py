"""ARC-Easy by cloze likelihood (Clark et al., 2018, arXiv:1803.05457): SmolLM2 that learns on it, or forgets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.protocols.optimisation import Recipe
from ...suite.protocols.policy_measures import Cloze, Forgetting, Measures
from ...suite.registry import register_task
from ...suite.seeds import rng
from .addition_smol import AdditionSmol
from .multiple_choice import DATA_SEED, SETS, MultipleChoice
from .pretrained import PretrainedPolicy
from .questions import cloze_of, distinct, packed_questions

PROBED = 200


@register_task(
    "arc-easy-smol",
    protocol="policy",
    version="2",
    metric="accuracy",
    title="ARC-Easy by likelihood, SmolLM2-135M with adapters, from 128 answered questions",
    budget={"currency": "tokens", "limit": 1000000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("smollm2", "arc-easy"),
    grants=("verifier", "answers", "judge", "shots", "solutions"),
    tags=("adapters",),
)
class ArcEasySmol(MultipleChoice):
    """`arc-easy` for a small model and a CPU: 400 questions of the test part, shorter answers."""

    model_name: ClassVar[str] = "smollm2"
    attention: ClassVar[str] = "eager"
    gate: ClassVar[tuple[float, float]] = (1.9, 2.2)
    recipe: ClassVar[Recipe] = PretrainedPolicy.recipe
    max_new: ClassVar[int] = 24
    tested: ClassVar[int] = 400


@register_task(
    "addition-smol-forgetting",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by SmolLM2-135M, from 64 worked ones, with ARC-Easy asked after every round",
    budget={"currency": "tokens", "limit": 600000, "wall_seconds": 3600.0, "memory_mb": 6144},
    data=("smollm2", "arc-easy"),
    grants=("verifier", "answers", "judge", "shots", "attempts", "solutions"),
    tags=("adapters",),
)
class AdditionSmolForgetting(AdditionSmol):
    """`addition-smol`, and after every round, off the meter, the accuracy on 200 questions of ARC-Easy by likelihood:
    what of its knowledge a policy loses while it learns to add (`probe_arc_easy` in the record's curve)."""

    def read(self, data: Data) -> Bundle:
        bundle = super().read(data)
        questions = distinct(SETS["arc-easy"](data).test)
        order = rng(DATA_SEED, "arc-easy-smol", "order").permutation(len(questions))[:PROBED]
        public, private = packed_questions([questions[at] for at in order.tolist()], "arc")
        return Bundle(public={**bundle.public, **public}, private={**bundle.private, **private})

    def measures(self) -> Measures:
        return dataclasses.replace(super().measures(), forgetting=Forgetting(self.asked, self.right))

    def asked(self, public: Mapping[str, Array]) -> Mapping[str, Cloze]:
        return {"arc-easy": cloze_of(public, "arc", np.arange(len(public["arc_counts"])))}

    def right(self, private: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"arc-easy": private["arc_right"]}
