"""Camelyon17-WILDS: tumour in tissue patches, new hospitals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ...suite.bundle import Array
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from ..streams.models.libraries import torchvision_net
from .images import WildsImages
from .networks import imagenet_normalized
from .tables import Column

_LABELED, _UNLABELED = "camelyon17_v1.0/metadata.csv", "camelyon17_unlabeled_v1.0/metadata.csv"
_SLIDES, _HOSPITALS = 50, 5


@register_task(
    "wilds-camelyon17",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="Camelyon17-WILDS, unlabelled patches of the test hospital",
    budget={"currency": "passes", "limit": 9073080, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("wilds-camelyon17",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-camelyon17",
    decoded={"pictures": 1055984, "shape": (3, 96, 96)},
)
class WildsCamelyon17(WildsImages):
    """Patches of 96 x 96 pixels of lymph nodes, two classes; labelled from three hospitals, tested on a fifth.

    302,436 labelled patches, 600,030 unlabelled ones of the test hospital. Published recipe: DenseNet-121 from scratch,
    SGD with momentum, not Nesterov's, at a constant rate; the budget is that of its ten epochs. Domains are hospitals.
    """

    data_name: ClassVar[str] = "wilds-camelyon17"
    dataset: ClassVar[str] = "camelyon17"
    unlabeled_split: ClassVar[str | None] = "test_unlabeled"
    domain: ClassVar[str | None] = "hospital"
    official_metrics: ClassVar[Mapping[str, str]] = {"acc_avg": "accuracy"}
    replicates: ClassVar[int] = 10
    n_classes: ClassVar[int] = 2
    side: ClassVar[int] = 96
    recipe: ClassVar[Recipe] = Recipe(
        lr=1e-3, nesterov=False, weight_decay=0.01, batch_size=32, ema=0.0, points=10, schedule=constant
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(_LABELED, "tumor", values=(0, 1)),
        Column(_LABELED, "slide", low=0, high=_SLIDES - 1),
        Column(_LABELED, "center", low=0, high=_HOSPITALS - 1),
        Column(_LABELED, "split", values=(0, 1)),
        Column(_UNLABELED, "slide", low=0, high=_SLIDES - 1),
        Column(_UNLABELED, "center", low=0, high=_HOSPITALS - 1),
    )

    def model(self) -> nn.Module:
        return imagenet_normalized(torchvision_net("densenet121", self.n_classes))

    def file_names(self, dataset: Any, rows: Array) -> list[str]:
        return [dataset._input_array[row] for row in rows]
