"""RxRx1-WILDS: genetic treatments of cells under the microscope, new batches of experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.bundle import Array
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import half_cosine
from ...suite.registry import register_task
from .augmentations import flip, quarter_turn
from .images import WildsImages
from .networks import Standardized, pretrained
from .tables import Column

_TABLE = "rxrx1_v1.0/metadata.csv"
_WARM_UP_STEPS, _STEPS = 5415, 90 * 565
"""Of the published run: 90 epochs of 565 batches."""


@register_task(
    "wilds-rxrx1",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="RxRx1-WILDS, without unlabelled pictures",
    budget={"currency": "passes", "limit": 10965240, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("wilds-rxrx1", "resnet50-imagenet"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    decoded={"pictures": 125510, "shape": (3, 256, 256)},
)
class WildsRxRx1(WildsImages):
    """Fluorescence pictures of 256 x 256 pixels, 1,139 treatments; labelled from 33 experiments, tested on 14 others.

    40,612 labelled pictures; WILDS 2.0 has no unlabelled ones. Published recipe: ResNet-50 pre-trained on ImageNet on
    pictures standardised one by one, Adam with a warm-up and a half cosine; the budget is that of its ninety epochs.
    The published training turns and flips pictures, which is the weak view here: `supervised` is the published ERM.
    There is no published strong view. Domains are experiments.
    """

    data_name: ClassVar[str] = "wilds-rxrx1"
    dataset: ClassVar[str] = "rxrx1"
    unlabeled_split: ClassVar[str | None] = None
    domain: ClassVar[str | None] = "experiment"
    official_metrics: ClassVar[Mapping[str, str]] = {"acc_avg": "accuracy"}
    n_classes: ClassVar[int] = 1139
    side: ClassVar[int] = 256
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=1e-3, weight_decay=1e-5, batch_size=72, ema=0.0, points=90,
        schedule=half_cosine(_WARM_UP_STEPS / _STEPS),
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(_TABLE, "dataset", values=("train", "val", "test")),
        Column(_TABLE, "plate", low=1),
        Column(_TABLE, "site", values=(1, 2)),
        Column(_TABLE, "sirna_id", low=0, gapless=True),
    )

    def model(self) -> nn.Module:
        return Standardized(pretrained("resnet50", self.n_classes, "resnet50-imagenet", "resnet50-0676ba61.pth"))

    def file_names(self, dataset: Any, rows: Array) -> list[str]:
        return [str(dataset._input_array[row]) for row in rows]

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return flip(quarter_turn(inputs, generator), generator)
