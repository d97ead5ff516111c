"""STL-10 with few labels and its 100,000 unlabelled images."""

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
from .layouts import STL_SIDE, read_stl_images, read_stl_labels
from .models.wide_resnet import WideResNet

if TYPE_CHECKING:
    from ...suite.data import Data


class Stl10(FewLabels):
    """What these tasks share: WRN-37-2, the recipe and the budget of FixMatch (Sohn et al. 2020, arXiv:2001.07685) on
    pictures of 96 x 96 pixels; all 8,000 test images are scored.

    Unlabelled are the 100,000 images that have no class, some of other kinds than the ten, and those of the 5,000
    training images that are not in the validation. Labels are drawn from the training images as in USB (Wang et al.
    2022, arXiv:2208.07204), not by the five published folds of 1,000.
    """

    n_classes: ClassVar[int] = 10
    lazy: ClassVar[bool] = True
    evaluation_batch: ClassVar[int] = 256
    draws: ClassVar[str] = "stl10"
    recipe: ClassVar[Recipe] = Recipe()

    def build(self, data: Data) -> Bundle:
        files = {
            name: data.file("stl10", f"stl10_binary/{name}.bin")
            for name in ("train_X", "train_y", "unlabeled_X", "test_X", "test_y")
        }
        parts = [read_stl_images(files[name]) for name in ("train_X", "unlabeled_X", "test_X")]
        train, test = (
            check_classes(read_stl_labels(files[name], len(images)), self.n_classes, str(files[name]))
            for name, images in (("train_y", parts[0]), ("test_y", parts[2]))
        )

        def fill(images: Array) -> None:
            start = 0
            for part in parts:
                for first in range(0, len(part), 1000):
                    self.tell(f"decoding ({start + first:,} of {len(images):,})")
                    some = part[first : first + 1000]
                    images[start + first : start + first + len(some)] = some
                start += len(part)

        return Bundle(
            public={"images": written((sum(map(len, parts)), 3, STL_SIDE, STL_SIDE), fill)},
            private={"labels": np.concatenate([train, np.full(len(parts[1]), -1), test])},
            facts={"train_images": len(train), "unlabeled_images": len(parts[1])},
        )

    def model(self) -> nn.Module:
        return Normalized(
            WideResNet(28, 2, self.n_classes, stages=4, first_stride=2), (0.441, 0.428, 0.387), (0.268, 0.261, 0.269)
        )


@register_task(
    "stl10-40",
    protocol="adaptation",
    version="1",
    metric="error",
    title="STL-10, four labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("stl10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="stl10-few",
    preset="stl10",
)
class Stl10Few40(Stl10):
    """40 labelled and 40 validation images."""

    n_labels: ClassVar[int] = 40
    n_validation: ClassVar[int] = 40


@register_task(
    "stl10-100",
    protocol="adaptation",
    version="1",
    metric="error",
    title="STL-10, ten labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("stl10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="stl10-few",
    preset="stl10",
)
class Stl10Few100(Stl10):
    """100 labelled and 100 validation images: the larger size of USB."""

    n_labels: ClassVar[int] = 100
    n_validation: ClassVar[int] = 100


@register_task(
    "stl10-250",
    protocol="adaptation",
    version="1",
    metric="error",
    title="STL-10, 25 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("stl10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="stl10-few",
    preset="stl10",
)
class Stl10Few250(Stl10):
    """250 labelled and 250 validation images."""

    n_labels: ClassVar[int] = 250
    n_validation: ClassVar[int] = 250


@register_task(
    "stl10-1000",
    protocol="adaptation",
    version="1",
    metric="error",
    title="STL-10, 100 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("stl10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="stl10-few",
    preset="stl10",
)
class Stl10Few1000(Stl10):
    """1,000 labelled and 500 validation images."""

    n_labels: ClassVar[int] = 1000
    n_validation: ClassVar[int] = 500
