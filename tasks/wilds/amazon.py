"""Amazon-WILDS: stars of reviews, new reviewers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import linear
from ...suite.registry import register_task
from .tables import Column
from .texts import WildsTexts


@register_task(
    "wilds-amazon",
    protocol="adaptation",
    version="1",
    metric="tenth_percentile_accuracy",
    title="Amazon-WILDS, unlabelled reviews of the test's reviewers",
    budget={"currency": "passes", "limit": 2209518, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("wilds-amazon", "distilbert-base-uncased"),
    grants=("norm-layers", "domains", "masked-tokens"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-amazon",
)
class WildsAmazon(WildsTexts):
    """Reviews of products, one to five stars; the accuracy that nine of ten new reviewers reach counts.

    245,502 labelled reviews, 268,761 unlabelled ones of the test's reviewers. Published recipe: DistilBERT, 512 tokens,
    AdamW whose rate falls to 0 along a line, gradients no longer than 1; the budget is that of its three epochs.
    Domains are reviewers. The counts are the papers' as recalled: no copy of the tables was at hand to count in.
    """

    data_name: ClassVar[str] = "wilds-amazon"
    dataset: ClassVar[str] = "amazon"
    unlabeled_split: ClassVar[str | None] = "test_unlabeled"
    domain: ClassVar[str | None] = "user"
    official_metrics: ClassVar[Mapping[str, str]] = {
        "10th_percentile_acc": "tenth_percentile_accuracy",
        "acc_avg": "accuracy",
    }
    n_classes: ClassVar[int] = 5
    length: ClassVar[int] = 512
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=1e-5, weight_decay=0.01, batch_size=8, ema=0.0, points=3, schedule=linear, max_norm=1.0
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column("amazon_v2.1/reviews.csv", "overall", values=(1, 2, 3, 4, 5)),
        Column("amazon_v2.1/splits/user.csv", "split", values=(-1, 0, 1, 2, 3, 4, 11, 12, 13)),
    )
