"""CivilComments-WILDS: toxic comments, whoever they mention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import linear
from ...suite.registry import register_task
from .tables import Column
from .texts import WildsTexts

_LABELED = "civilcomments_v1.0/all_data_with_identities.csv"
_UNLABELED = "civilcomments_unlabeled_v1.0/unlabeled_data_with_identities.csv"

_IDENTITIES = ("male", "female", "christian", "muslim", "black", "white")
"""Shares of annotators: the groups of the official metric are those of 0.5 or more."""
_COMBINED = ("LGBTQ", "other_religions")
"""Made of several identities, by the publishers."""


@register_task(
    "wilds-civilcomments",
    protocol="adaptation",
    version="1",
    metric="worst_group_accuracy",
    title="CivilComments-WILDS, further unlabelled comments",
    budget={"currency": "passes", "limit": 4035570, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("wilds-civilcomments", "distilbert-base-uncased"),
    grants=("norm-layers", "masked-tokens"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-civilcomments",
)
class WildsCivilComments(WildsTexts):
    """Comments on news, toxic or not; the worst of the groups of a mentioned identity and a class counts.

    269,038 labelled comments, 1,551,515 unlabelled ones. Published recipe: DistilBERT, 300 tokens, AdamW whose rate
    falls to 0 along a line, gradients no longer than 1; the budget is that of its five epochs. The published groups of
    training are made of an identity and the class, which of unlabelled comments would tell the class: domains are not
    granted.
    """

    data_name: ClassVar[str] = "wilds-civilcomments"
    dataset: ClassVar[str] = "civilcomments"
    unlabeled_split: ClassVar[str | None] = "extra_unlabeled"
    official_metrics: ClassVar[Mapping[str, str]] = {"acc_wg": "worst_group_accuracy", "acc_avg": "accuracy"}
    replicates: ClassVar[int] = 5
    n_classes: ClassVar[int] = 2
    length: ClassVar[int] = 300
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=1e-5, weight_decay=0.01, batch_size=16, ema=0.0, points=5, schedule=linear, max_norm=1.0
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(_LABELED, "split", values=("train", "val", "test")),
        Column(_LABELED, "toxicity", low=0, high=1),
        *(Column(_LABELED, name, low=0, high=1) for name in _IDENTITIES),
        *(Column(_LABELED, name, low=0) for name in _COMBINED),
        Column(_UNLABELED, "toxicity", low=0, high=1),
    )
