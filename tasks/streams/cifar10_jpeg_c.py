"""cifar10-jpeg-c: photographs of 32 x 32 pixels under 15 corruptions of our own making, a ResNet-20 with batch norm.

The base of all streams are the first 2,000 test images of `cifar10-jpeg`, which lie shuffled. The first 2,000 of its
training images, which trained the source model, are granted as source data. Numbers on these tasks are not numbers on
CIFAR-10-C: the images have passed through JPEG, and the corruptions are drawn anew.

The same streams over a network with group norm are in `cifar10_jpeg_c_gn.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.protocols.stream import Stream, StreamTask
from ...suite.registry import register_task
from ...suite.seeds import rng
from .common_corruptions import FROST_PICTURES, NAMES, corrupt, read_frost
from .layouts.parquet import read_parquet
from .orders import Domain, class_sorted, continual, correlated, gradual, mixed, recurring, separate, then
from .pixels import as_images, labelled_batches
from .posterior import swag_diagonal
from .source_models import RESNET20, SourceModel

if TYPE_CHECKING:
    from ...suite.data import Data

BASE = 2000
SOURCE = 2000
BATCH_SIZE = 200
SEVEREST = 5
STEP = 200
"""Images of one corruption at one severity in the gradual stream."""
FEW = 200
"""Images of one corruption in the recurring stream and in that of single images."""
GAMMA = 0.1
"""Concentration of the Dirichlet distribution of the correlated stream, as in RoTTA."""
POSTERIOR_SEED = 0


class Cifar10JpegC(StreamTask):
    """What all these tasks share: data, source model, preprocessing.

    Public array `images`, uint8 (N, 3, 32, 32): 15 x 2,000 corrupted at severity 5, 2,000 clean, and 15 x 4 x 200 at
    severities 1 to 4. `order` is what the order of a subclass takes its random numbers by, so that tasks over two
    networks see equal streams.
    """

    n_classes: ClassVar[int] = 10
    source: ClassVar[SourceModel] = RESNET20
    clean_error: ClassVar[tuple[float, float]] = RESNET20.clean_error
    batch_size: ClassVar[int] = BATCH_SIZE

    def build(self, data: Data) -> Bundle:
        model = self.source.load(data)
        test, test_labels = read_parquet(data.file("cifar10-jpeg", "test.parquet"))
        self.tell("measuring the source model")
        clean_error = self.source.gate(model, labelled_batches(test, test_labels), data)
        base, labels = test[:BASE], test_labels[:BASE]
        frost = read_frost([data.file("frost-pictures", name) for name in FROST_PICTURES])
        parts = [*self._corrupted(base, frost), base, *self._milder(base, frost)]
        label_parts = [labels] * (len(NAMES) + 1)
        label_parts += [labels[_step(severity)] for _ in NAMES for severity in range(1, SEVEREST)]
        train, train_labels = read_parquet(data.file("cifar10-jpeg", "train.parquet"))
        self.tell("sampling the source posterior")
        mean, variance = swag_diagonal(model, train, train_labels, seed=POSTERIOR_SEED)
        return Bundle(
            public={
                "images": np.concatenate(parts),
                "source_images": train[:SOURCE],
                "source_labels": train_labels[:SOURCE],
                "posterior_mean": mean,
                "posterior_variance": variance,
            },
            private={"labels": np.concatenate(label_parts)},
            model=model.state_dict(),
            facts={"clean_error": clean_error, "corruptions": list(NAMES), "weights_sha256": self.source.sha256},
        )

    def _corrupted(self, base: Array, frost: list[Tensor]) -> list[Array]:
        parts = []
        for number, name in enumerate(NAMES):
            self.tell(f"corrupting the images ({number + 1} of {len(NAMES)}: {name})")
            parts.append(_corrupt(base, np.arange(BASE), name, SEVEREST, frost))
        return parts

    def _milder(self, base: Array, frost: list[Tensor]) -> list[Array]:
        self.tell("corrupting the images more mildly")
        return [
            _corrupt(base[_step(severity)], np.arange(BASE)[_step(severity)], name, severity, frost)
            for name in NAMES
            for severity in range(1, SEVEREST)
        ]

    def model(self) -> nn.Module:
        return self.source.make()

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["source_images"][indices])

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        return then(self.order(bundle, seed), len(NAMES) * BASE + np.arange(BASE))

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        raise NotImplementedError


def _corrupt(images: Array, ids: Array, name: str, severity: int, frost: list[Tensor]) -> Array:
    pictures = frost if name == "frost" else None
    return corrupt(torch.from_numpy(images), torch.from_numpy(ids), name, severity, frost=pictures).numpy()


def _step(severity: int) -> slice:
    """The images that the gradual stream shows at `severity`, so that none comes at two severities."""
    return slice(STEP * (severity - 1), STEP * severity)


def severe_domains(n: int = BASE) -> list[Domain]:
    """A domain a corruption at severity 5, each with the first `n` images."""
    return [Domain(name, number * BASE + np.arange(n)) for number, name in enumerate(NAMES)]


def ladders() -> list[list[Domain]]:
    """A ladder a corruption: 200 images at each of the severities 1 to 5."""
    below = (len(NAMES) + 1) * BASE
    found = []
    for number, name in enumerate(NAMES):
        first = below + number * (SEVEREST - 1) * STEP
        steps = [Domain(name, first + np.arange(STEP) + level * STEP) for level in range(SEVEREST - 1)]
        top = number * BASE + np.arange(BASE)[_step(SEVEREST)]
        found.append([*steps, Domain(name, top)])
    return found


class Continual(Cifar10JpegC):
    """The corruptions one after the other."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return continual(severe_domains(), rng(seed, "cifar10-jpeg-c", "continual"), self.batch_size)


class ClassSorted(Cifar10JpegC):
    """Within each corruption one class after the other."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        draw = rng(seed, "cifar10-jpeg-c", "class-sorted")
        return class_sorted(severe_domains(), bundle.private()["labels"], draw, self.batch_size)


class Correlated(Cifar10JpegC):
    """Within each corruption classes in bursts."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        draw = rng(seed, "cifar10-jpeg-c", "correlated")
        return correlated(severe_domains(), bundle.private()["labels"], GAMMA, draw, self.batch_size)


class Singles(Cifar10JpegC):
    """One image at a time."""

    batch_size: ClassVar[int] = 1

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return continual(severe_domains(FEW), rng(seed, "cifar10-jpeg-c", "bs1"), self.batch_size)


@register_task(
    "cifar10-jpeg-c-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, one after the other, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCContinual(Continual):
    """The corruptions in the order of `common_corruptions.NAMES` at severity 5, each over 2,000 images, shuffled.

    30,000 images in batches of 200, then the 2,000 clean ones. The budget is 100 passes an image and 500,000 for the
    set-up: source and norm take 1, Tent 3, CoTTA with 32 views 37, MEMO 97.
    """


@register_task(
    "cifar10-jpeg-c-mixed",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, all mixed, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCMixed(Cifar10JpegC):
    """The images of `cifar10-jpeg-c-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return mixed(severe_domains(), rng(seed, "cifar10-jpeg-c", "mixed"), self.batch_size)


@register_task(
    "cifar10-jpeg-c-class-sorted",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, classes sorted, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCClassSorted(ClassSorted):
    """The images of `cifar10-jpeg-c-continual`; within each corruption one class comes after the other."""


@register_task(
    "cifar10-jpeg-c-correlated",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCCorrelated(Correlated):
    """The images of `cifar10-jpeg-c-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""


@register_task(
    "cifar10-jpeg-c-gradual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions that rise and fall, severities 1 to 5 to 1",
    budget={"currency": "passes", "limit": 3200000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCGradual(Cifar10JpegC):
    """Every corruption at severities 1 to 5 and back to 1, each step over 200 images; 27,000 in batches of 200."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return gradual(ladders(), rng(seed, "cifar10-jpeg-c", "gradual"), self.batch_size)


@register_task(
    "cifar10-jpeg-c-recurring",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, ten times over, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCRecurring(Cifar10JpegC):
    """The 15 corruptions over 200 images each, ten times, shuffled anew each time: 30,000 images in batches of 200."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return recurring(severe_domains(FEW), rng(seed, "cifar10-jpeg-c", "recurring"), self.batch_size)


@register_task(
    "cifar10-jpeg-c-long",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, ten times over all images, severity 5",
    budget={"currency": "passes", "limit": 30500000, "wall_seconds": 86400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCLong(Cifar10JpegC):
    """The stream of `cifar10-jpeg-c-continual` ten times, shuffled anew each time: 300,000 images in batches of 200."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return recurring(severe_domains(), rng(seed, "cifar10-jpeg-c", "long"), self.batch_size)


@register_task(
    "cifar10-jpeg-c-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, methods start anew at each, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10",
)
class Cifar10JpegCReset(Cifar10JpegC):
    """The images of `cifar10-jpeg-c-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, seed: int) -> Stream:
        return separate(severe_domains(), rng(seed, "cifar10-jpeg-c", "reset"), self.batch_size)


@register_task(
    "cifar10-jpeg-c-bs1",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG) under 15 corruptions, one image at a time, severity 5",
    budget={"currency": "passes", "limit": 800000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c",
    preset="cifar10/bs1",
)
class Cifar10JpegCSingles(Singles):
    """200 images under each corruption, one after the other, in batches of one: 3,000 images."""
