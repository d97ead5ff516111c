"""cifar10-jpeg with few labels: photographs of 32 x 32 pixels, a small network, a budget for one processor core.

Numbers on these tasks are not numbers on CIFAR-10: the images have passed through JPEG, there are fewer of them, the
network is small and the training short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import nn

from ...suite.bundle import Bundle
from ...suite.protocols.adaptation import Recipe
from ...suite.registry import register_task
from ..streams.layouts.parquet import read_parquet
from ..streams.models.normalize import Normalized
from .few_labels import FewLabels, check_classes
from .models.small_resnet import SmallResNet

if TYPE_CHECKING:
    from ...suite.data import Data

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


class Cifar10Jpeg(FewLabels):
    """What these tasks share. 20,000 training images, 2,000 a class; all 10,000 test images are scored.

    The unlabelled pool is what of the training images is neither labelled nor in the validation. The network is
    `SmallResNet`, of which one core computes about 5,000 example passes a second: the budget takes it seven
    minutes.
    """

    n_classes: ClassVar[int] = 10
    labeled_in_pool: ClassVar[bool] = False
    draws: ClassVar[str] = "cifar10-jpeg"
    recipe: ClassVar[Recipe] = Recipe(lr=0.1, batch_size=32, ema=0.99)

    def build(self, data: Data) -> Bundle:
        parts = []
        for name in ("train.parquet", "test.parquet"):
            path = data.file("cifar10-jpeg", name)
            self.tell(f"decoding {name}")
            images, labels = read_parquet(path)
            parts.append((images, check_classes(labels, self.n_classes, str(path))))
        (train, train_labels), (test, test_labels) = parts
        return Bundle(
            public={"images": np.concatenate([train, test])},
            private={"labels": np.concatenate([train_labels, test_labels])},
            facts={"classes": list(CLASSES), "train_images": len(train)},
        )

    def model(self) -> nn.Module:
        return Normalized(SmallResNet(self.n_classes), MEAN, STD)


@register_task(
    "cifar10-jpeg-40",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), four labels a class",
    budget={"currency": "passes", "limit": 2000000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("cifar10-jpeg",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    bundle="cifar10-jpeg",
    preset="cifar10",
)
class Cifar10Jpeg40(Cifar10Jpeg):
    """40 labelled, 40 validation and 19,920 unlabelled images."""

    n_labels: ClassVar[int] = 40
    n_validation: ClassVar[int] = 40


@register_task(
    "cifar10-jpeg-250",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), 25 labels a class",
    budget={"currency": "passes", "limit": 2000000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("cifar10-jpeg",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    bundle="cifar10-jpeg",
    preset="cifar10",
)
class Cifar10Jpeg250(Cifar10Jpeg):
    """250 labelled, 250 validation and 19,500 unlabelled images."""

    n_labels: ClassVar[int] = 250
    n_validation: ClassVar[int] = 250


@register_task(
    "cifar10-jpeg-4000",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), 400 labels a class",
    budget={"currency": "passes", "limit": 2000000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("cifar10-jpeg",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    bundle="cifar10-jpeg",
    preset="cifar10",
)
class Cifar10Jpeg4000(Cifar10Jpeg):
    """4,000 labelled, 500 validation and 15,500 unlabelled images."""

    n_labels: ClassVar[int] = 4000
    n_validation: ClassVar[int] = 500
