"""FMoW-WILDS: land use from above, later years and all regions of the world."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ...suite.bundle import Array
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import steps
from ...suite.registry import register_task
from .compat import usable
from .images import WildsImages
from .networks import imagenet_normalized, pretrained
from .tables import Column, check_tables

_TABLE, _REGIONS = "fmow_v1.1/rgb_metadata.csv", "fmow_v1.1/country_code_mapping.csv"
_EPOCHS = 60


@register_task(
    "wilds-fmow",
    protocol="adaptation",
    version="1",
    metric="worst_region_accuracy",
    title="FMoW-WILDS, unlabelled pictures of the years of the test",
    budget={"currency": "passes", "limit": 13835340, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("wilds-fmow", "densenet121-imagenet"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-fmow",
    decoded={"pictures": 314904, "shape": (3, 224, 224)},
)
class WildsFMoW(WildsImages):
    """Satellite pictures of 224 x 224 pixels, 62 uses of land; labelled before 2013, tested from 2016 on.

    76,863 labelled pictures, 173,208 unlabelled ones of the test's years; the worst of the five regions counts.
    Published recipe: DenseNet-121 pre-trained on ImageNet, Adam whose rate falls by 4 % after each epoch; the budget is
    that of its sixty epochs. Domains are years. The counts are the papers' as recalled: no copy of the tables was at
    hand to count in.
    """

    data_name: ClassVar[str] = "wilds-fmow"
    dataset: ClassVar[str] = "fmow"
    unlabeled_split: ClassVar[str | None] = "test_unlabeled"
    domain: ClassVar[str | None] = "year"
    official_metrics: ClassVar[Mapping[str, str]] = {
        "acc_worst_region": "worst_region_accuracy",
        "acc_avg": "accuracy",
    }
    n_classes: ClassVar[int] = 62
    side: ClassVar[int] = 224
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=1e-4, weight_decay=0.0, batch_size=32, ema=0.0, points=_EPOCHS,
        schedule=steps(_EPOCHS, 0.96),
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(_TABLE, "split", values=("train", "val", "test", "seq")),
        Column(_REGIONS, "region", values=("Africa", "Americas", "Asia", "Europe", "Oceania"), empty=True),
    )

    def check(self, root: Path) -> None:
        super().check(root)
        with usable():
            categories = importlib.import_module("wilds.datasets.fmow_dataset").categories
        check_tables(root, [Column(_TABLE, "category", values=tuple(categories))])

    def model(self) -> nn.Module:
        return imagenet_normalized(
            pretrained("densenet121", self.n_classes, "densenet121-imagenet", "densenet121-a639ec97.pth")
        )

    def file_names(self, dataset: Any, rows: Array) -> list[str]:
        return [f"images/rgb_img_{number}.png" for number in dataset.full_idxs[rows]]
