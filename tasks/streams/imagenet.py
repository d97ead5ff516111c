"""ImageNet under shift: ImageNet-C, ImageNet-3DCC, ImageNet-R and ImageNet-A, with torchvision's ResNet-50.

All are folders of classes. Images are decoded once, to 224 x 224 pixels: those of ImageNet-C and ImageNet-3DCC have
that size, others are resized to 256 on the shorter side and cut in the centre. ImageNet-R and -A know 200 of the
classes: the rows of the classifier for the others are taken off, which is what masking their logits does. The gate of
the source model is its error on 5,000 clean validation images; where a task shows some after the stream, it is these.

Source data, for the methods that need them, are ten training images of each class, the first ones by name: the
validation images are the clean twins of those of ImageNet-C, and some published runs took their Fisher information on
them. Who runs other methods needs no training images.
"""

from __future__ import annotations

import filecmp
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
from .layouts.folders import Files, class_folders, decode_all, image_files, listed, subfolders
from .models.libraries import torchvision_net
from .models.normalize import Normalized
from .orders import Domain, class_sorted, continual, correlated, gradual, mixed, recurring, separate, then
from .pixels import as_images, labelled_batches
from .posterior import sampled_posterior
from .published_models import RESNET50
from .source_models import SourceModel

if TYPE_CHECKING:
    from ...suite.data import Data

SIDE, RESIZE = 224, 256
CLASSES = 1000
PER_CLASS = 50
SEVERITIES = (1, 2, 3, 4, 5)
BATCH_SIZE = 64
GAMMA = 0.1
SOURCE_PER_CLASS = 10
POSTERIOR_SHOWN, POSTERIOR_BATCH = 4000, 32
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
    batch_size: ClassVar[int] = BATCH_SIZE

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        """The image files of each domain, with classes as numbers into the task's own."""
        raise NotImplementedError

    def build(self, data: Data) -> Bundle:
        validation = data.file("imagenet", "val")
        classes = imagenet_classes(validation)
        domains = self.files(data, classes)
        clean = listed(validation, clean_names(data), classes)
        pixels = np.empty((len(clean.paths), 3, SIDE, SIDE), np.uint8)
        decode_all(clean.paths, pixels, SIDE, self.source.resize, bicubic=self.source.bicubic)
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

    def source_classes(self, data: Data) -> Sequence[str]:
        """The class folders of the task's own classes, in the order of their numbers."""
        return imagenet_classes(data.file("imagenet", "val"))

    def build_source(self, data: Data) -> Bundle:
        return source_bundle(data, self.source_classes(data))

    def build_posterior(self, bundle: BundleFolder, source: BundleFolder) -> Bundle:
        return sampled_posterior(self, bundle, source, POSTERIOR_SHOWN, POSTERIOR_BATCH)

    def model(self) -> nn.Module:
        return Normalized(torchvision_net("resnet50", self.n_classes), self.source.mean, self.source.std)

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["source_images"][indices])

    def domains(self, bundle: BundleFolder) -> list[Domain]:
        found, start = [], 0
        for name, size in bundle.facts["domains"]:
            found.append(Domain(name, start + np.arange(size)))
            start += size
        return found

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        stream = self.order(bundle, rng(seed, type(self).__name__))
        start, n = sum(size for _, size in bundle.facts["domains"]), len(bundle.private()["labels"])
        return then(stream, np.arange(start, n)) if self.clean_after else stream

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return continual(self.domains(bundle), draw, self.batch_size)


def imagenet_classes(validation: Path) -> tuple[str, ...]:
    """The 1,000 class folders of the validation images, sorted: their places are the numbers of the classes."""
    classes = subfolders(validation)
    if len(classes) != CLASSES:
        raise DataMissing(
            f"{validation} has {len(classes)} class folders, expected {CLASSES}. Unpack the validation images into a "
            "folder a class again."
        )
    return classes


def clean_names(data: Data) -> list[str]:
    """The 5,000 validation images `<class>/<name>` on which RobustBench measures."""
    return data.file("imagenet-5k-ids", "imagenet_test_image_ids.txt").read_text().split()


def source_bundle(data: Data, classes: Sequence[str]) -> Bundle:
    """`SOURCE_PER_CLASS` training images of each of `classes`, the first by name, in an order drawn once.

    Raises `DataMissing` where a class has fewer, or where one of them is a validation image.
    """
    folder, validation = data.file("imagenet-train", "train"), data.file("imagenet", "val")
    paths: list[Path] = []
    for name in classes:
        found = image_files(folder / name)[:SOURCE_PER_CLASS] if (folder / name).is_dir() else []
        if len(found) < SOURCE_PER_CLASS:
            raise DataMissing(
                f"{folder / name} holds {len(found)} images, expected {SOURCE_PER_CLASS} or more.\n"
                f"{data.describe('imagenet-train').by_hand}"
            )
        _no_twins(found, image_files(validation / name))
        paths += found
    order = rng(0, "imagenet", "source").permutation(len(paths))
    images = written(
        (len(paths), 3, SIDE, SIDE), lambda out: decode_all([paths[index] for index in order], out, SIDE, RESIZE)
    )
    return Bundle({"source_images": images, "source_labels": order // SOURCE_PER_CLASS}, {})


def _no_twins(paths: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise `DataMissing` where one of `paths` has the content of one of `others`, whatever its name."""
    sizes = [(other.stat().st_size, other) for other in others]
    for path in paths:
        size = path.stat().st_size
        for twin in (other for own, other in sizes if own == size and filecmp.cmp(path, other, shallow=False)):
            raise DataMissing(
                f"{path} is the validation image {twin.name}, the clean twin of images of the stream. "
                "Put training images there."
            )


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


class ImageNetC5kSeverities(ImageNetStream):
    """ImageNet-C over the 5,000 images of RobustBench, corruption by corruption and in each severity by severity."""

    def files(self, data: Data, classes: Sequence[str]) -> dict[str, Files]:
        names = clean_names(data)
        return {
            f"{name} {severity}": listed(data.file("imagenet-c", name) / str(severity), names, classes)
            for name in NAMES
            for severity in SEVERITIES
        }

    def ladders(self, bundle: BundleFolder) -> list[list[Domain]]:
        """The images of each corruption by severity, as a domain of the corruption's name."""
        found = self.domains(bundle)
        steps = [found[start : start + len(SEVERITIES)] for start in range(0, len(found), len(SEVERITIES))]
        return [[Domain(name, step.indices) for step in ladder] for name, ladder in zip(NAMES, steps, strict=True)]


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
        own = self.source_classes(data)
        folder = data.file(self.name, self.name)
        if set(own) - set(classes) or len(own) != self.n_classes:
            raise DataMissing(f"{folder} has {len(own)} class folders, expected 200 of ImageNet's. Get it again.")
        return {self.name: class_folders(folder, own, self.expected)}

    def source_classes(self, data: Data) -> Sequence[str]:
        return subfolders(data.file(self.name, self.name))


@register_task(
    "imagenet-c-5k-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, one after the other, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kContinual(ImageNetC5k):
    """The corruptions in their usual order, each shuffled; 75,000 images in batches of 64."""


@register_task(
    "imagenet-c-5k-reset",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, methods start anew at each, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k",
    preset="imagenet",
    variants={
        "imagenet-c-5k-reset-bs1": {
            "version": "1",
            "title": "ImageNet-C, 5,000 images a corruption, one at a time, methods start anew at each, severity 5",
            "budget": {"currency": "passes", "limit": 15500000, "wall_seconds": 345600.0, "memory_mb": 32768},
            "preset": "imagenet/bs1",
            "set": {"batch_size": 1},
        },
    },
)
class ImageNetC5kReset(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return separate(self.domains(bundle), draw, self.batch_size)


@register_task(
    "imagenet-c-5k-mixed",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, all mixed, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kMixed(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return mixed(self.domains(bundle), draw, self.batch_size)


@register_task(
    "imagenet-c-5k-correlated",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kCorrelated(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return correlated(self.domains(bundle), bundle.private()["labels"], GAMMA, draw, self.batch_size)


@register_task(
    "imagenet-c-5k-class-sorted",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, classes sorted, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kClassSorted(ImageNetC5k):
    """The images of `imagenet-c-5k-continual`; within each corruption one class comes after the other."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return class_sorted(self.domains(bundle), bundle.private()["labels"], draw, self.batch_size)


@register_task(
    "imagenet-c-5k-recurring",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, ten times over, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k",
    preset="imagenet",
)
class ImageNetC5kRecurring(ImageNetC5k):
    """The stream of `imagenet-c-5k-continual` ten times, shuffled anew each time: 750,000 images."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return recurring(self.domains(bundle), draw, self.batch_size)


@register_task(
    "imagenet-c-5k-gradual",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a step, corruptions that rise and fall, severities 1 to 5 to 1",
    budget={"currency": "passes", "limit": 135500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-5k-severities",
    preset="imagenet",
)
class ImageNetC5kGradual(ImageNetC5kSeverities):
    """Every corruption at severities 1 to 5 and back to 1, each step over 5,000 images; 675,000 in batches of 64.

    The bundle holds 375,000 decoded images, 57 GB.
    """

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return gradual(self.ladders(bundle), draw, self.batch_size)


@register_task(
    "imagenet-c-50k-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, one after the other, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kContinual(ImageNetC50k):
    """The corruptions in their usual order, each shuffled; 750,000 images in batches of 64."""


@register_task(
    "imagenet-c-50k-reset",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, methods start anew at each, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-50k",
    preset="imagenet",
    variants={
        "imagenet-c-50k-reset-bs1": {
            "version": "1",
            "title": "ImageNet-C, 50,000 images a corruption, one at a time, methods start anew at each, severity 5",
            "budget": {"currency": "passes", "limit": 150500000, "wall_seconds": 2419200.0, "memory_mb": 32768},
            "preset": "imagenet/bs1",
            "set": {"batch_size": 1},
        },
    },
)
class ImageNetC50kReset(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`; before each corruption the method is put back to its start."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return separate(self.domains(bundle), draw, self.batch_size)


@register_task(
    "imagenet-c-50k-mixed",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, all mixed, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kMixed(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`, all in one shuffle."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return mixed(self.domains(bundle), draw, self.batch_size)


@register_task(
    "imagenet-c-50k-correlated",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kCorrelated(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`; within each corruption classes come in bursts (Dirichlet, 0.1)."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return correlated(self.domains(bundle), bundle.private()["labels"], GAMMA, draw, self.batch_size)


@register_task(
    "imagenet-c-50k-class-sorted",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, classes sorted, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="imagenet-c-50k",
    preset="imagenet",
)
class ImageNetC50kClassSorted(ImageNetC50k):
    """The images of `imagenet-c-50k-continual`; within each corruption one class comes after the other."""

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        return class_sorted(self.domains(bundle), bundle.private()["labels"], draw, self.batch_size)


@register_task(
    "imagenet-3dcc-5k-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="ImageNet-3DCC, 5,000 images a corruption, one after the other, severity 5",
    budget={"currency": "passes", "limit": 12500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-3dcc", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "torchvision-models")},
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
    version="2",
    metric="error",
    title="ImageNet-R, shuffled",
    budget={"currency": "passes", "limit": 6500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-r", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet-r", "data": ("imagenet-train", "imagenet", "imagenet-r", "torchvision-models")},
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
    version="2",
    metric="error",
    title="ImageNet-A, shuffled",
    budget={"currency": "passes", "limit": 2000000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-a", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet-a", "data": ("imagenet-train", "imagenet", "imagenet-a", "torchvision-models")},
    bundle="imagenet-a",
    preset="imagenet",
)
class ImageNetA(_TwoHundred):
    """All 7,500 images in one shuffle, batches of 64."""

    name: ClassVar[str] = "imagenet-a"
    expected: ClassVar[int] = 7500
