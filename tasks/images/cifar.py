"""CIFAR-10 and CIFAR-100 with few labels, as FixMatch has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import nn

from ...suite.bundle import Bundle
from ...suite.protocols.adaptation import Recipe
from ...suite.registry import register_task
from ..streams.layouts.binary import read_binary
from ..streams.models.normalize import Normalized
from .few_labels import FewLabels, check_classes
from .models.wide_resnet import WideResNet

if TYPE_CHECKING:
    from ...suite.data import Data


class Cifar(FewLabels):
    """What these tasks share. The budget is what FixMatch's 2^20 steps of 64 labelled images and seven times as many
    unlabelled ones cost, in the recipe of Sohn et al. 2020 (arXiv:2001.07685). All 10,000 test images are scored.

    Other than there, a validation no larger than the labelled set is held out of the 50,000 training images, of which
    all others are in the unlabelled pool.
    """

    data: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    """Training files and, last, the test file."""
    label_bytes: ClassVar[int]

    def build(self, data: Data) -> Bundle:
        parts = []
        for name in self.files:
            path = data.file(self.data, name)
            images, labels = read_binary(path, self.label_bytes)
            parts.append((images, check_classes(labels, self.n_classes, str(path), complete=False)))
        labels = np.concatenate([of_part for _, of_part in parts])
        train_images = len(labels) - len(parts[-1][1])
        check_classes(labels[:train_images], self.n_classes, f"{data.folder(self.data)}, training images")
        return Bundle(
            public={"images": np.concatenate([images for images, _ in parts])},
            private={"labels": labels},
            facts={"train_images": train_images},
        )


class Cifar10(Cifar):
    """CIFAR-10 and WRN-28-2."""

    n_classes: ClassVar[int] = 10
    data: ClassVar[str] = "cifar10"
    files: ClassVar[tuple[str, ...]] = (
        *(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    )
    label_bytes: ClassVar[int] = 1
    draws: ClassVar[str] = "cifar10"
    recipe: ClassVar[Recipe] = Recipe()

    def model(self) -> nn.Module:
        return Normalized(WideResNet(28, 2, self.n_classes), (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


class Cifar100(Cifar):
    """CIFAR-100 and WRN-28-8, with twice the weight decay."""

    n_classes: ClassVar[int] = 100
    data: ClassVar[str] = "cifar100"
    files: ClassVar[tuple[str, ...]] = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")
    label_bytes: ClassVar[int] = 2
    draws: ClassVar[str] = "cifar100"
    recipe: ClassVar[Recipe] = Recipe(weight_decay=1e-3)

    def model(self) -> nn.Module:
        return Normalized(WideResNet(28, 8, self.n_classes), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


@register_task(
    "cifar10-40",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-10, four labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar10-few",
    preset="cifar10",
)
class Cifar10Few40(Cifar10):
    """40 labelled and 40 validation images."""

    n_labels: ClassVar[int] = 40
    n_validation: ClassVar[int] = 40


@register_task(
    "cifar10-250",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-10, 25 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar10-few",
    preset="cifar10",
)
class Cifar10Few250(Cifar10):
    """250 labelled and 250 validation images."""

    n_labels: ClassVar[int] = 250
    n_validation: ClassVar[int] = 250


@register_task(
    "cifar10-4000",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-10, 400 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar10",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar10-few",
    preset="cifar10",
)
class Cifar10Few4000(Cifar10):
    """4,000 labelled and 500 validation images."""

    n_labels: ClassVar[int] = 4000
    n_validation: ClassVar[int] = 500


@register_task(
    "cifar100-200",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-100, two labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("cifar100",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar100-few",
    preset="cifar100",
)
class Cifar100Few200(Cifar100):
    """200 labelled and 200 validation images: the smaller size of USB (Wang et al. 2022, arXiv:2208.07204)."""

    n_labels: ClassVar[int] = 200
    n_validation: ClassVar[int] = 200


@register_task(
    "cifar100-400",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-100, four labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("cifar100",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar100-few",
    preset="cifar100",
)
class Cifar100Few400(Cifar100):
    """400 labelled and 400 validation images."""

    n_labels: ClassVar[int] = 400
    n_validation: ClassVar[int] = 400


@register_task(
    "cifar100-2500",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-100, 25 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("cifar100",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar100-few",
    preset="cifar100",
)
class Cifar100Few2500(Cifar100):
    """2,500 labelled and 1,000 validation images."""

    n_labels: ClassVar[int] = 2500
    n_validation: ClassVar[int] = 1000


@register_task(
    "cifar100-10000",
    protocol="adaptation",
    version="1",
    metric="error",
    title="CIFAR-100, 100 labels a class",
    budget={"currency": "passes", "limit": 3019898880, "wall_seconds": 1209600.0, "memory_mb": 16384},
    data=("cifar100",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
    tags=("gpu",),
    bundle="cifar100-few",
    preset="cifar100",
)
class Cifar100Few10000(Cifar100):
    """10,000 labelled and 1,000 validation images."""

    n_labels: ClassVar[int] = 10000
    n_validation: ClassVar[int] = 1000
