"""SVHN with few labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import nn

from ...suite.bundle import Array, Bundle
from ...suite.protocols.adaptation import Recipe
from ...suite.registry import register_task
from ..streams.layouts.files import written
from ..streams.models.normalize import Normalized
from .few_labels import FewLabels, check_classes
from .layouts import read_svhn
from .models.wide_resnet import WideResNet

if TYPE_CHECKING:
    from ...suite.data import Data


class Svhn(FewLabels):
    """What these tasks share: WRN-28-2, the recipe and the budget of FixMatch (Sohn et al. 2020, arXiv:2001.07685); all
    26,032 test images are scored.

    Training images are the 73,257 of the training set and the 531,131 of the extra set, as in USB (Wang et al. 2022,
    arXiv:2208.07204). Digits are not mirrored, as in FixMatch; USB mirrors them.
    """

    n_classes: ClassVar[int] = 10
    lazy: ClassVar[bool] = True
    flip: ClassVar[bool] = False
    draws: ClassVar[str] = "svhn"
    recipe: ClassVar[Recipe] = Recipe()

    def build(self, data: Data) -> Bundle:
        parts, of_part = [], []
        for name in ("train", "extra", "test"):
            path = data.file("svhn", f"{name}_32x32.mat")
            self.tell(f"reading {path.name}")
            images, labels = read_svhn(path)
            parts.append(images)
            of_part.append(check_classes(labels, self.n_classes, str(path)))

        def fill(images: Array) -> None:
            start = 0
            for part in parts:
                images[start : start + len(part)] = part
                start += len(part)

        return Bundle(
            public={"images": written((sum(map(len, parts)), 3, 32, 32), fill)},
            private={"labels": np.concatenate(of_part)},
            facts={"train_images": len(parts[0]) + len(parts[1])},
        )

    def model(self) -> nn.Module:
        return Normalized(WideResNet(28, 2, self.n_classes), (0.438, 0.444, 0.473), (0.198, 0.201, 0.197))


@register_task(
    "svhn-40",
    protocol="adaptation",
    version="1",
    metric="error",
    title="SVHN, four labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("svhn",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="svhn-few",
    preset="svhn",
)
class SvhnFew40(Svhn):
    """40 labelled and 40 validation images."""

    n_labels: ClassVar[int] = 40
    n_validation: ClassVar[int] = 40


@register_task(
    "svhn-250",
    protocol="adaptation",
    version="1",
    metric="error",
    title="SVHN, 25 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("svhn",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="svhn-few",
    preset="svhn",
)
class SvhnFew250(Svhn):
    """250 labelled and 250 validation images."""

    n_labels: ClassVar[int] = 250
    n_validation: ClassVar[int] = 250


@register_task(
    "svhn-1000",
    protocol="adaptation",
    version="1",
    metric="error",
    title="SVHN, 100 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("svhn",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="svhn-few",
    preset="svhn",
)
class SvhnFew1000(Svhn):
    """1,000 labelled and 500 validation images."""

    n_labels: ClassVar[int] = 1000
    n_validation: ClassVar[int] = 500
