"""iWildCam2020-WILDS: animals before camera traps, new traps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ...suite.bundle import Array
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from .images import WildsImages
from .networks import imagenet_normalized, pretrained
from .tables import Column

_DATE = "%Y-%m-%d %H:%M:%S.%f"
_LABELED, _UNLABELED = "iwildcam_v2.0/metadata.csv", "iwildcam_unlabeled_v1.0/metadata.csv"


@register_task(
    "wilds-iwildcam",
    protocol="adaptation",
    version="1",
    metric="macro_f1",
    title="iWildCam-WILDS, unlabelled pictures of further traps",
    budget={"currency": "passes", "limit": 4673124, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("wilds-iwildcam", "resnet50-imagenet"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-iwildcam",
    decoded={"pictures": 1022149, "shape": (3, 448, 448)},
)
class WildsIWildCam(WildsImages):
    """Pictures of camera traps, resized to 448 x 448 pixels, 182 species or nothing; tested on other traps.

    129,809 labelled pictures, 819,120 unlabelled ones of traps that are in no other set. Published recipe: ResNet-50
    pre-trained on ImageNet, Adam at a constant rate; the budget is that of its twelve epochs. Domains are traps.
    """

    data_name: ClassVar[str] = "wilds-iwildcam"
    dataset: ClassVar[str] = "iwildcam"
    unlabeled_split: ClassVar[str | None] = "extra_unlabeled"
    domain: ClassVar[str | None] = "location"
    official_metrics: ClassVar[Mapping[str, str]] = {"F1-macro_all": "macro_f1", "acc_avg": "accuracy"}
    n_classes: ClassVar[int] = 182
    side: ClassVar[int] = 448
    evaluation_batch: ClassVar[int] = 64
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=3e-5, weight_decay=0.0, batch_size=16, ema=0.0, points=12, schedule=constant
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(_LABELED, "split", values=("train", "val", "test", "id_val", "id_test")),
        Column(_LABELED, "y", low=0, gapless=True),
        Column(_LABELED, "location_remapped", low=0, gapless=True),
        Column(_LABELED, "sequence_remapped", low=0, gapless=True),
        Column(_LABELED, "datetime", date=_DATE),
        Column(_UNLABELED, "datetime", date=_DATE, empty=True),
        Column(_UNLABELED, "y", low=-1, high=99999),
        Column(_UNLABELED, "location_remapped", low=0),
    )

    def model(self) -> nn.Module:
        return imagenet_normalized(pretrained("resnet50", self.n_classes, "resnet50-imagenet", "resnet50-0676ba61.pth"))

    def file_names(self, dataset: Any, rows: Array) -> list[str]:
        folder = "images" if dataset.dataset_name == "iwildcam_unlabeled" else "train"
        return [f"{folder}/{dataset._input_array[row]}" for row in rows]
