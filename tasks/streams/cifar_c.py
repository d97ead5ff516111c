"""CIFAR-10-C and CIFAR-100-C as published: 10,000 test images under 15 corruptions, with RobustBench's source models.

The clean test images, whose classes the corrupted ones share in their order, are shown after the stream and open the
gate of the source model. The source data, for the methods that need it, are all 50,000 training images. PETAL's
posterior is sampled on 10,000 of them; for the WRN-28-10 that takes hours on a processor, and nobody else waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.errors import DataMissing
from ...suite.protocols.stream import Stream, StreamTask
from ...suite.registry import register_task
from ...suite.seeds import rng
from .common_corruptions.constants import NAMES
from .layouts.binary import read_binary
from .layouts.files import written
from .layouts.npy import read_corruption, read_labels
from .orders import Domain, class_sorted, continual, correlated, gradual, mixed, recurring, separate, then
from .pixels import as_images, labelled_batches
from .posterior import sampled_posterior
from .published_models import RESNEXT29_AUGMIX, WRN28_10
from .source_models import SourceModel

if TYPE_CHECKING:
    from ...suite.data import Data

N = 10_000
BATCH_SIZE = 200
GAMMA = 0.1
"""Concentration of the Dirichlet distribution of the correlated streams, as in RoTTA."""
POSTERIOR_SHOWN, POSTERIOR_BATCH = 10_000, 100


class CifarC(StreamTask):
    """What these tasks share. Public array `images`, uint8 (N, 3, 32, 32): corruption by corruption, in each severity
    by severity of `severities`, then the clean test images.
    """

    data: ClassVar[str]
    clean: ClassVar[tuple[str, str, int]]
    """Data set and file of the clean images, and the bytes before each."""
    train: ClassVar[tuple[str, ...]]
    """Files of the training images, in the data set of the clean ones."""
    folder: ClassVar[str]
    source: ClassVar[SourceModel]
    n: ClassVar[int] = N
    severities: ClassVar[tuple[int, ...]] = (5,)

    def build(self, data: Data) -> Bundle:
        name, file, label_bytes = self.clean
        clean, clean_labels = read_binary(data.file(name, file), label_bytes)
        labels_file = data.file(self.data, f"{self.folder}/labels.npy")
        labels = read_labels(labels_file, self.n)
        if not np.array_equal(labels, clean_labels):
            raise DataMissing(f"{labels_file} does not hold the classes of the clean test images, in their order.")
        model = self.source.load(data)
        self.tell("measuring the source model")
        clean_error = self.source.gate(model, labelled_batches(clean, clean_labels), data)
        parts = len(NAMES) * len(self.severities)

        def fill(images: Array) -> None:
            for number, corruption in enumerate(NAMES):
                self.tell(f"reading {corruption}")
                path = data.file(self.data, f"{self.folder}/{corruption}.npy")
                for place, severity in enumerate(self.severities, number * len(self.severities)):
                    images[place * self.n : (place + 1) * self.n] = read_corruption(path, severity, self.n)
            images[parts * self.n :] = clean

        return Bundle(
            public={"images": written(((parts + 1) * self.n, 3, 32, 32), fill)},
            private={"labels": np.tile(labels, parts + 1)},
            model=model.state_dict(),
            facts={"clean_error": clean_error, "corruptions": list(NAMES), "weights_sha256": self.source.digest(data)},
        )

    def build_source(self, data: Data) -> Bundle:
        name, _, label_bytes = self.clean
        parts = [read_binary(data.file(name, file), label_bytes) for file in self.train]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Bundle({"source_images": images, "source_labels": labels}, {})

    def build_posterior(self, bundle: BundleFolder, source: BundleFolder) -> Bundle:
        return sampled_posterior(self, bundle, source, POSTERIOR_SHOWN, POSTERIOR_BATCH)

    def model(self) -> nn.Module:
        return self.source.make()

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["source_images"][indices])

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        clean = len(NAMES) * len(self.severities) * self.n
        return then(self.order(bundle, rng(seed, self.data, type(self).__name__)), clean + np.arange(self.n))

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        raise NotImplementedError

    def ladders(self) -> list[list[Domain]]:
        """The images of each corruption by severity, as a domain of the corruption's name."""
        levels = len(self.severities)
        return [
            [Domain(name, (number * levels + level) * self.n + np.arange(self.n)) for level in range(levels)]
            for number, name in enumerate(NAMES)
        ]

    def domains(self) -> list[Domain]:
        """The images of each corruption at the highest severity of the bundle."""
        return [ladder[-1] for ladder in self.ladders()]


class Cifar10C(CifarC):
    """CIFAR-10-C and the WRN-28-10 of RobustBench."""

    n_classes: ClassVar[int] = 10
    data: ClassVar[str] = "cifar10-c"
    clean: ClassVar[tuple[str, str, int]] = ("cifar10", "cifar-10-batches-bin/test_batch.bin", 1)
    train: ClassVar[tuple[str, ...]] = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))
    folder: ClassVar[str] = "CIFAR-10-C"
    source: ClassVar[SourceModel] = WRN28_10
    clean_error: ClassVar[tuple[float, float]] = WRN28_10.clean_error


class Cifar100C(CifarC):
    """CIFAR-100-C and the ResNeXt-29 of AugMix."""

    n_classes: ClassVar[int] = 100
    data: ClassVar[str] = "cifar100-c"
    clean: ClassVar[tuple[str, str, int]] = ("cifar100", "cifar-100-binary/test.bin", 2)
    train: ClassVar[tuple[str, ...]] = ("cifar-100-binary/train.bin",)
    folder: ClassVar[str] = "CIFAR-100-C"
    source: ClassVar[SourceModel] = RESNEXT29_AUGMIX
    clean_error: ClassVar[tuple[float, float]] = RESNEXT29_AUGMIX.clean_error


@register_task(
    "cifar10-c-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, the corruptions one after the other, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c",
    preset="cifar10",
)
class Cifar10CContinual(Cifar10C):
    """The corruptions in their usual order, each over 10,000 images, shuffled; 150,000 images in batches of 200."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return continual(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar10-c-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, methods start anew at each corruption, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c",
    preset="cifar10",
)
class Cifar10CReset(Cifar10C):
    """The images of `cifar10-c-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return separate(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar10-c-mixed",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, all corruptions mixed, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c",
    preset="cifar10",
)
class Cifar10CMixed(Cifar10C):
    """The images of `cifar10-c-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return mixed(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar10-c-correlated",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c",
    preset="cifar10",
)
class Cifar10CCorrelated(Cifar10C):
    """The images of `cifar10-c-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return correlated(self.domains(), bundle.private()["labels"], GAMMA, draw, BATCH_SIZE)


@register_task(
    "cifar10-c-class-sorted",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, classes sorted, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c",
    preset="cifar10",
)
class Cifar10CClassSorted(Cifar10C):
    """The images of `cifar10-c-continual`; within each corruption one class comes after the other."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return class_sorted(self.domains(), bundle.private()["labels"], draw, BATCH_SIZE)


@register_task(
    "cifar10-c-recurring",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, the corruptions ten times over, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c",
    preset="cifar10",
)
class Cifar10CRecurring(Cifar10C):
    """The stream of `cifar10-c-continual` ten times, shuffled anew each time: 1,500,000 images."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return recurring(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar10-c-gradual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10-C, corruptions that rise and fall, severities 1 to 5 to 1",
    budget={"currency": "passes", "limit": 135500000, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar10-c", "cifar10", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar10-c", "data": ("cifar10", "source-models")},
    bundle="cifar10-c-severities",
    preset="cifar10",
)
class Cifar10CGradual(Cifar10C):
    """Every corruption at severities 1 to 5 and back to 1, each step over 10,000 images: 1,350,000 images."""

    severities: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5)

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return gradual(self.ladders(), draw, BATCH_SIZE)


@register_task(
    "cifar100-c-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, the corruptions one after the other, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c",
    preset="cifar100",
)
class Cifar100CContinual(Cifar100C):
    """The corruptions in their usual order, each over 10,000 images, shuffled; 150,000 images in batches of 200."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return continual(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar100-c-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, methods start anew at each corruption, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c",
    preset="cifar100",
)
class Cifar100CReset(Cifar100C):
    """The images of `cifar100-c-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return separate(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar100-c-mixed",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, all corruptions mixed, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c",
    preset="cifar100",
)
class Cifar100CMixed(Cifar100C):
    """The images of `cifar100-c-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return mixed(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar100-c-correlated",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c",
    preset="cifar100",
)
class Cifar100CCorrelated(Cifar100C):
    """The images of `cifar100-c-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return correlated(self.domains(), bundle.private()["labels"], GAMMA, draw, BATCH_SIZE)


@register_task(
    "cifar100-c-class-sorted",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, classes sorted, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c",
    preset="cifar100",
)
class Cifar100CClassSorted(Cifar100C):
    """The images of `cifar100-c-continual`; within each corruption one class comes after the other."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return class_sorted(self.domains(), bundle.private()["labels"], draw, BATCH_SIZE)


@register_task(
    "cifar100-c-recurring",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, the corruptions ten times over, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c",
    preset="cifar100",
)
class Cifar100CRecurring(Cifar100C):
    """The stream of `cifar100-c-continual` ten times, shuffled anew each time: 1,500,000 images."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return recurring(self.domains(), draw, BATCH_SIZE)


@register_task(
    "cifar100-c-gradual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-100-C, corruptions that rise and fall, severities 1 to 5 to 1",
    budget={"currency": "passes", "limit": 135500000, "wall_seconds": 604800.0, "memory_mb": 16384},
    data=("cifar100-c", "cifar100", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "cifar100-c", "data": ("cifar100", "source-models")},
    bundle="cifar100-c-severities",
    preset="cifar100",
)
class Cifar100CGradual(Cifar100C):
    """Every corruption at severities 1 to 5 and back to 1, each step over 10,000 images: 1,350,000 images."""

    severities: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5)

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return gradual(self.ladders(), draw, BATCH_SIZE)
