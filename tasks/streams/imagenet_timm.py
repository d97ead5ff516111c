"""ImageNet-C with timm's ViT-Base/16 and ResNet-50 with group norm, in the settings of SAR and DeYO.

Niu et al. 2023 (arXiv:2302.12400) and Lee et al. 2024 (arXiv:2403.07366) show networks without batch norm the 50,000
images of each corruption in a mild setting (one corruption at a time, from a new start, in batches of 64) and three
"wild" ones: all corruptions mixed, classes in turn (`imbalanced`), and one image at a time. Each is a task here, and
one over the 5,000 images of RobustBench, with the continual order of ViDA (arXiv:2306.04344) beside them.

Weights and preprocessing are timm's. The ViT is `augreg_in21k_ft_in1k`, which is what `vit_base_patch16_224` named in
the version of SAR (0.6.11); in that of DeYO (0.9.7) the name gave `augreg2_in21k_ft_in1k`, half a point better on clean
images. Both want mean and standard deviation 0.5. The two releases normalise by ImageNet's, so that their figures for
the ViT are those of a model that sees wrong colours: 29.9 % right without adaptation, and 51.1 % with its own (SAR's
issue 5). The images of ImageNet-C have 224 pixels already; clean ones are shrunk as timm evaluates the model.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import nn

from ...suite.bundle import BundleFolder
from ...suite.protocols.stream import Stream
from ...suite.registry import register_task
from .imagenet import ImageNetC5k, ImageNetC50k, ImageNetStream
from .orders import continual, imbalanced, mixed, separate
from .published_models import RESNET50_GN, VIT_B16
from .source_models import SourceModel

RATIO = 500_000
"""How much likelier the class whose turn it is comes than each other one, as in SAR's release: nearly always."""


class TimmStream(ImageNetStream):
    """What these tasks share: a source model of timm's, and an order by its name."""

    source: ClassVar[SourceModel]
    arranged: ClassVar[str]

    def model(self) -> nn.Module:
        return self.source.make()

    def order(self, bundle: BundleFolder, draw: np.random.Generator) -> Stream:
        domains = self.domains(bundle)
        if self.arranged == "imbalanced":
            return imbalanced(domains, bundle.private()["labels"], RATIO, draw, self.batch_size)
        return {"continual": continual, "mixed": mixed, "reset": separate}[self.arranged](
            domains, draw, self.batch_size
        )


class ViT(TimmStream):
    """With the ViT-Base/16."""

    source: ClassVar[SourceModel] = VIT_B16
    clean_error: ClassVar[tuple[float, float]] = VIT_B16.clean_error


class ResNet50GN(TimmStream):
    """With the ResNet-50 with group norm."""

    source: ClassVar[SourceModel] = RESNET50_GN
    clean_error: ClassVar[tuple[float, float]] = RESNET50_GN.clean_error


@register_task(
    "imagenet-c-5k-vit-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, methods start anew at each, ViT-B/16, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "timm-models"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "timm-models")},
    bundle="imagenet-c-5k-vit",
    preset="imagenet/vit",
    variants={
        "imagenet-c-5k-vit-continual": {
            "title": "ImageNet-C, 5,000 images a corruption, one after the other, ViT-B/16, severity 5",
            "set": {"arranged": "continual"},
        },
        "imagenet-c-5k-vit-mixed": {
            "title": "ImageNet-C, 5,000 images a corruption, all mixed, ViT-B/16, severity 5",
            "set": {"arranged": "mixed"},
        },
        "imagenet-c-5k-vit-imbalanced": {
            "title": "ImageNet-C, 10,000 images drawn from each corruption, classes in turn, ViT-B/16, severity 5",
            "budget": {"currency": "passes", "limit": 30500000, "wall_seconds": 345600.0, "memory_mb": 32768},
            "set": {"arranged": "imbalanced"},
        },
        "imagenet-c-5k-vit-reset-bs1": {
            "title": "ImageNet-C, 5,000 images a corruption, one by one, methods start anew, ViT-B/16, severity 5",
            "budget": {"currency": "passes", "limit": 15500000, "wall_seconds": 345600.0, "memory_mb": 32768},
            "preset": "imagenet/bs1/vit",
            "set": {"batch_size": 1},
        },
    },
)
class ViT5k(ViT, ImageNetC5k):
    """The 5,000 images of RobustBench under each corruption, shuffled, and the other orders of them; batches of 64."""

    arranged: ClassVar[str] = "reset"


@register_task(
    "imagenet-c-5k-resnet50-gn-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 5,000 images a corruption, methods start anew at each, ResNet-50 GN, severity 5",
    budget={"currency": "passes", "limit": 15500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "timm-models"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "timm-models")},
    bundle="imagenet-c-5k-resnet50-gn",
    preset="imagenet/gn",
    variants={
        "imagenet-c-5k-resnet50-gn-continual": {
            "title": "ImageNet-C, 5,000 images a corruption, one after the other, ResNet-50 GN, severity 5",
            "set": {"arranged": "continual"},
        },
        "imagenet-c-5k-resnet50-gn-mixed": {
            "title": "ImageNet-C, 5,000 images a corruption, all mixed, ResNet-50 GN, severity 5",
            "set": {"arranged": "mixed"},
        },
        "imagenet-c-5k-resnet50-gn-imbalanced": {
            "title": "ImageNet-C, 10,000 images drawn from each corruption, classes in turn, ResNet-50 GN, severity 5",
            "budget": {"currency": "passes", "limit": 30500000, "wall_seconds": 345600.0, "memory_mb": 32768},
            "set": {"arranged": "imbalanced"},
        },
        "imagenet-c-5k-resnet50-gn-reset-bs1": {
            "title": "ImageNet-C, 5,000 images a corruption, one by one, methods start anew, ResNet-50 GN, severity 5",
            "budget": {"currency": "passes", "limit": 15500000, "wall_seconds": 345600.0, "memory_mb": 32768},
            "preset": "imagenet/bs1",
            "set": {"batch_size": 1},
        },
    },
)
class ResNet50GN5k(ResNet50GN, ImageNetC5k):
    """The 5,000 images of RobustBench under each corruption, shuffled, and the other orders of them; batches of 64."""

    arranged: ClassVar[str] = "reset"


@register_task(
    "imagenet-c-50k-vit-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, methods start anew at each, ViT-B/16, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "timm-models"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "timm-models")},
    bundle="imagenet-c-50k-vit",
    preset="imagenet/vit",
    variants={
        "imagenet-c-50k-vit-mixed": {
            "title": "ImageNet-C, 50,000 images a corruption, all mixed, ViT-B/16, severity 5",
            "set": {"arranged": "mixed"},
        },
        "imagenet-c-50k-vit-imbalanced": {
            "title": "ImageNet-C, 100,000 images drawn from each corruption, classes in turn, ViT-B/16, severity 5",
            "budget": {"currency": "passes", "limit": 300500000, "wall_seconds": 2419200.0, "memory_mb": 32768},
            "set": {"arranged": "imbalanced"},
        },
        "imagenet-c-50k-vit-reset-bs1": {
            "title": "ImageNet-C, 50,000 images a corruption, one by one, methods start anew, ViT-B/16, severity 5",
            "budget": {"currency": "passes", "limit": 150500000, "wall_seconds": 2419200.0, "memory_mb": 32768},
            "preset": "imagenet/bs1/vit",
            "set": {"batch_size": 1},
        },
    },
)
class ViT50k(ViT, ImageNetC50k):
    """All 50,000 images under each corruption, shuffled, and the other orders of them; batches of 64."""

    arranged: ClassVar[str] = "reset"


@register_task(
    "imagenet-c-50k-resnet50-gn-reset",
    protocol="stream",
    version="1",
    metric="error",
    title="ImageNet-C, 50,000 images a corruption, methods start anew at each, ResNet-50 GN, severity 5",
    budget={"currency": "passes", "limit": 150500000, "wall_seconds": 604800.0, "memory_mb": 32768},
    data=("imagenet-c", "imagenet", "imagenet-5k-ids", "timm-models"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "imagenet", "data": ("imagenet-train", "imagenet", "timm-models")},
    bundle="imagenet-c-50k-resnet50-gn",
    preset="imagenet/gn",
    variants={
        "imagenet-c-50k-resnet50-gn-mixed": {
            "title": "ImageNet-C, 50,000 images a corruption, all mixed, ResNet-50 GN, severity 5",
            "set": {"arranged": "mixed"},
        },
        "imagenet-c-50k-resnet50-gn-imbalanced": {
            "title": "ImageNet-C, 100,000 images drawn from each corruption, classes in turn, ResNet-50 GN, severity 5",
            "budget": {"currency": "passes", "limit": 300500000, "wall_seconds": 2419200.0, "memory_mb": 32768},
            "set": {"arranged": "imbalanced"},
        },
        "imagenet-c-50k-resnet50-gn-reset-bs1": {
            "title": "ImageNet-C, 50,000 images a corruption, one by one, methods start anew, ResNet-50 GN, severity 5",
            "budget": {"currency": "passes", "limit": 150500000, "wall_seconds": 2419200.0, "memory_mb": 32768},
            "preset": "imagenet/bs1",
            "set": {"batch_size": 1},
        },
    },
)
class ResNet50GN50k(ResNet50GN, ImageNetC50k):
    """All 50,000 images under each corruption, shuffled, and the other orders of them; batches of 64."""

    arranged: ClassVar[str] = "reset"
