"""ImageNet under shift: ImageNet-C, ImageNet-3DCC, ImageNet-R and ImageNet-A, with torchvision's ResNet-50.

All are folders of classes. Images are decoded once, to 224 x 224 pixels: those of ImageNet-C and ImageNet-3DCC have
that size, others are resized to 256 on the shorter side and cut in the centre. ImageNet-R and -A know 200 of the
classes: the rows of the classifier for the others are taken off, which is what masking their logits does. The gate of
the source model is its error on 5,000 clean validation images; where a task shows some after the stream, it is these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.errors import DataMissing
from ...suite.protocols.stream import Stream, StreamTask
from ...suite.registry import register_task
from ...suite.seeds import rng
from .common_corruptions.constants import NAMES
from .layouts.files import written
from .layouts.folders import Files, class_folders, decode_all, listed, subfolders
from .models.libraries import torchvision_net
from .models.normalize import Normalized
from .orders import Domain, continual, correlated, mixed, separate, then
from .pixels import as_images, labelled_batches
from .published_models import RESNET50
from .source_models import SourceModel

if TYPE_CHECKING:
    from ...suite.data import Data

SIDE, RESIZE = 224, 256
CLASSES = 1000
PER_CLASS = 50
BATCH_SIZE = 64
GAMMA = 0.1
NAMES_3D = (
    "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf", "iso_noise",
    "low_light", "xy_motion_blur", "z_motion_blur",
)  # fmt: skip


class ImageNetStream(StreamTask):
    """What these tasks share. Public array `images`, uint8 (N, 3, 224, 224): domain by domain, then the clean images
    where `clean_after`. Which domain is where stands in the facts.
    """

    n_classes: ClassVar[int] = CLASSES
    source: ClassVar[SourceModel] = RESNET50
    clean_error: ClassVar[tuple[float, float]] = RESNET50.clean_error
    resize: ClassVar[int | None] = None
    clean_after: ClassVar[bool] = True

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        """The image files of each domain, with classes as numbers into the task's own."""
        raise NotImplementedError

    def build(self, data: Data) -> Bundle:
        validation = data.file("imagenet", "val")
        classes = imagenet_classes(validation)
        domains = self.files(data, classes)
        clean = listed(validation, clean_names(data), classes)
        pixels = np.empty((len(clean.paths), 3, SIDE, SIDE), np.uint8)
        decode_all(clean.paths, pixels, SIDE, RESIZE)
        model = self.source.load(data)
        self.tell("measuring the source model")
        clean_error = self.source.gate(model, labelled_batches(pixels, clean.labels), data)
        sizes = [(name, len(files.paths)) for name, files in domains.items()]

        def fill(images: Array) -> None:
            start = 0
            for name, files in domains.items():
                stop = start + len(files.paths)
                out = images[start:stop]
                decode_all(files.paths, out, SIDE, self.resize, lambda done, name=name: self.tell(f"{name}: {done}"))  # type: ignore[misc]
                start = stop
            if self.clean_after:
                images[start:] = pixels

        total = sum(size for _, size in sizes) + len(pixels) * self.clean_after
        labels = [files.labels for files in domains.values()] + [clean.labels] * self.clean_after
        own = next(iter(domains.values())).classes
        return Bundle(
            public={"images": written((total, 3, SIDE, SIDE), fill)},
            private={"labels": np.concatenate(labels)},
            model=_classes_only(model, [classes.index(name) for name in own]).state_dict(),
            facts={"clean_error": clean_error, "domains": sizes, "weights_sha256": self.source.digest(data)},
        )

    def model(self) -> nn.Module:
        return Normalized(torchvision_net("resnet50", self.n_classes), self.source.mean, self.source.std)

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def domains(self, bundle: BundleFolder) -> list[Domain]:
        found, start = [], 0
        for name, size in bundle.facts["domains"]:
            found.append(Domain(name, start + np.arange(size)))
            start += size
        return found

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        stream = self.order(bundle, rng(seed, type(self).__name__))
        n = len(bundle.private()["labels"])
        return then(stream, np.arange(len(stream.indices), n)) if self.clean_after else stream

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return continual(self.domains(bundle), draw, BATCH_SIZE)


def imagenet_classes(validation: Path) -> tuple[str, ...]:
    """The 1,000 class folders of the validation images, sorted: their places are the numbers of the classes."""
    classes = subfolders(validation)
    if len(classes) != CLASSES:
        raise DataMissing(f"{validation} has {len(classes)} class folders, expected {CLASSES}.")
    return classes


def clean_names(data: Data) -> list[str]:
    """The 5,000 validation images `<class>/<name>` on which RobustBench measures."""
    return data.file("imagenet-5k-ids", "imagenet_test_image_ids.txt").read_text().split()


def _classes_only(model: nn.Module, kept: list[int]) -> nn.Module:
    """`model` with the rows `kept` of its classifier."""
    if len(kept) == CLASSES:
        return model
    old: nn.Linear = model.net.fc  # type: ignore[union-attr, assignment]
    new = nn.Linear(old.in_features, len(kept))
    with torch.no_grad():
        new.weight.copy_(old.weight[kept])
        new.bias.copy_(old.bias[kept])
    model.net.fc = new  # type: ignore[union-attr]
    return model


class ImageNetC5k(ImageNetStream):
    """ImageNet-C at severity 5 over the 5,000 images of RobustBench."""

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        names = clean_names(data)
        return {name: listed(data.file("imagenet-c", name) / "5", names, classes) for name in NAMES}


class ImageNetC50k(ImageNetStream):
    """ImageNet-C at severity 5 over all 50,000 validation images."""

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        expected = PER_CLASS * CLASSES
        return {name: class_folders(data.file("imagenet-c", name) / "5", classes, expected) for name in NAMES}


class _TwoHundred(ImageNetStream):
    """One domain of 200 classes."""

    n_classes: ClassVar[int] = 200
    resize: ClassVar[int | None] = RESIZE
    clean_after: ClassVar[bool] = False
    name: ClassVar[str]
    expected: ClassVar[int]

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        folder = data.file(self.name, self.name)
        own = subfolders(folder)
        unknown = sorted(set(own) - set(classes))
        if unknown or len(own) != self.n_classes:
            raise DataMissing(f"{folder} has {len(own)} class folders, expected 200 of ImageNet's. Get it again.")
        return {self.name: class_folders(folder, own, self.expected)}


@register_task(
    "imagenet-c-5k-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, one after the other, severity 5",
    budget={"currency": "passes", "limit": 8000000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kContinual(ImageNetC5k):
    """The corruptions in their usual order, each shuffled; 75,000 images in batches of 64."""


@register_task(
    "imagenet-c-5k-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, methods start anew at each, severity 5",
    budget={"currency": "passes", "limit": 8000000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kReset(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return separate(self.domains(bundle), draw, BATCH_SIZE)


@register_task(
    "imagenet-c-5k-mixed",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, all mixed, severity 5",
    budget={"currency": "passes", "limit": 8000000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kMixed(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return mixed(self.domains(bundle), draw, BATCH_SIZE)


@register_task(
    "imagenet-c-5k-correlated",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 8000000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kCorrelated(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return correlated(self.domains(bundle), bundle.private()["labels"], GAMMA, draw, BATCH_SIZE)


@register_task(
    "imagenet-c-50k-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, one after the other, severity 5",
    budget={"currency": "passes", "limit": 75500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kContinual(ImageNetC50k):
    """The corruptions in their usual order, each shuffled; 750,000 images in batches of 64."""


@register_task(
    "imagenet-c-50k-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, methods start anew at each, severity 5",
    budget={"currency": "passes", "limit": 75500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kReset(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return separate(self.domains(bundle), draw, BATCH_SIZE)


@register_task(
    "imagenet-c-50k-mixed",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, all mixed, severity 5",
    budget={"currency": "passes", "limit": 75500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kMixed(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return mixed(self.domains(bundle), draw, BATCH_SIZE)


@register_task(
    "imagenet-c-50k-correlated",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 75500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kCorrelated(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return correlated(self.domains(bundle), bundle.private()["labels"], GAMMA, draw, BATCH_SIZE)


@register_task(
    "imagenet-3dcc-5k-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-3DCC, 5,000 images a corruption, one after the other, severity 5",
    budget={"currency": "passes", "limit": 6500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-3dcc", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-3dcc-5k",
    preset="imagenet",
)
class ImageNet3DCC5k(ImageNetStream):
    """The 12 corruptions in the order of PETAL, each shuffled; 60,000 images in batches of 64."""

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        names = clean_names(data)
        return {name: listed(data.file("imagenet-3dcc", name) / "5", names, classes) for name in NAMES_3D}


@register_task(
    "imagenet-r-stream",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-R, shuffled",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-r", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-r",
    preset="imagenet",
)
class ImageNetR(_TwoHundred):
    """All 30,000 images in one shuffle, batches of 64."""

    name: ClassVar[str] = "imagenet-r"
    expected: ClassVar[int] = 30000


@register_task(
    "imagenet-a-stream",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-A, shuffled",
    budget={"currency": "passes", "limit": 1250000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-a", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="imagenet-a",
    preset="imagenet",
)
class ImageNetA(_TwoHundred):
    """All 7,500 images in one shuffle, batches of 64."""

    name: ClassVar[str] = "imagenet-a"
    expected: ClassVar[int] = 7500
