"""EuroSAT with few labels, in the sizes of USB."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Bundle
from ...suite.protocols.adaptation import Recipe
from ...suite.registry import register_task
from ..streams.layouts.folders import class_folders, decode_all
from ..streams.models.normalize import Normalized
from .color_augmentations import cutout, rand_augment, weak_view
from .few_labels import FewLabels
from .models.wide_resnet import WideResNet

if TYPE_CHECKING:
    from ...suite.data import Data

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
SIDE = 32
TRAIN_SHARE = 0.8


class EuroSat(FewLabels):
    """What these tasks share: satellite images brought to 32 x 32 pixels, WRN-28-2, FixMatch's recipe and budget.

    As in USB (Wang et al. 2022, arXiv:2208.07204), the first 80 % of each class, sorted by file name, are for training
    and the others, 5,400, are the test images; views are mirrored along both axes. Other than there, where a vision
    transformer starts from pre-trained weights, the network starts from scratch: numbers are not those of USB's table,
    and methods take their defaults, since nobody has published hyper-parameters for this network here.
    """

    n_classes: ClassVar[int] = 10
    expected: ClassVar[int] = 27_000
    draws: ClassVar[str] = "eurosat"
    recipe: ClassVar[Recipe] = Recipe()

    def build(self, data: Data) -> Bundle:
        folder = data.file("eurosat", "2750")
        files = class_folders(folder, CLASSES, self.expected)
        of_class = [np.flatnonzero(files.labels == number) for number in range(self.n_classes)]
        cuts = [int(TRAIN_SHARE * len(members)) for members in of_class]
        train = np.concatenate([members[:cut] for members, cut in zip(of_class, cuts, strict=True)])
        test = np.concatenate([members[cut:] for members, cut in zip(of_class, cuts, strict=True)])
        order = np.concatenate([train, test])
        images = np.empty((len(order), 3, SIDE, SIDE), np.uint8)
        paths = [files.paths[index] for index in order]
        decode_all(paths, images, SIDE, SIDE, lambda done: self.tell(f"decoding ({done:,} of {len(order):,})"))
        return Bundle(
            public={"images": images},
            private={"labels": files.labels[order]},
            facts={"classes": list(CLASSES), "train_images": len(train)},
        )

    def model(self) -> nn.Module:
        return Normalized(WideResNet(28, 2, self.n_classes), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        view = weak_view(inputs, generator)
        upside_down = torch.rand(len(view), 1, 1, 1, generator=generator, device=view.device) < 0.5
        return torch.where(upside_down, view.flip(2), view)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return cutout(rand_augment(self.weak(inputs, generator), generator), generator)


@register_task(
    "eurosat-20",
    protocol="adaptation",
    version="1",
    metric="error",
    title="EuroSAT, two labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("eurosat",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="eurosat-few",
)
class EuroSatFew20(EuroSat):
    """20 labelled and 20 validation images."""

    n_labels: ClassVar[int] = 20
    n_validation: ClassVar[int] = 20


@register_task(
    "eurosat-40",
    protocol="adaptation",
    version="1",
    metric="error",
    title="EuroSAT, four labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("eurosat",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="eurosat-few",
)
class EuroSatFew40(EuroSat):
    """40 labelled and 40 validation images."""

    n_labels: ClassVar[int] = 40
    n_validation: ClassVar[int] = 40
