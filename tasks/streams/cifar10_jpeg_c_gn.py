"""The streams of `cifar10_jpeg_c.py` over a network without batch norm: ResNet-26 with group norm.

Batch statistics do not exist there, and small or one-sided batches do not hurt the source model.
"""

from __future__ import annotations

from typing import ClassVar

from ...suite.registry import register_task
from .cifar10_jpeg_c import Cifar10JpegC, ClassSorted, Continual, Correlated, Singles
from .source_models import RESNET26GN, SourceModel


class _GroupNorm(Cifar10JpegC):
    """The other source model."""

    source: ClassVar[SourceModel] = RESNET26GN
    clean_error: ClassVar[tuple[float, float]] = RESNET26GN.clean_error


@register_task(
    "cifar10-jpeg-c-gn-continual",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), group norm, under 15 corruptions, one after the other, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c-gn",
    preset="cifar10",
)
class Cifar10JpegCGNContinual(_GroupNorm, Continual):
    """The stream of `cifar10-jpeg-c-continual` over the ResNet-26 with group norm."""


@register_task(
    "cifar10-jpeg-c-gn-class-sorted",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), group norm, under 15 corruptions, classes sorted, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c-gn",
    preset="cifar10",
)
class Cifar10JpegCGNClassSorted(_GroupNorm, ClassSorted):
    """The stream of `cifar10-jpeg-c-class-sorted` over the ResNet-26 with group norm."""


@register_task(
    "cifar10-jpeg-c-gn-correlated",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), group norm, under 15 corruptions, classes in bursts, severity 5",
    budget={"currency": "passes", "limit": 3500000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c-gn",
    preset="cifar10",
)
class Cifar10JpegCGNCorrelated(_GroupNorm, Correlated):
    """The stream of `cifar10-jpeg-c-correlated` over the ResNet-26 with group norm."""


@register_task(
    "cifar10-jpeg-c-gn-bs1",
    protocol="stream",
    version="1",
    metric="error",
    title="CIFAR-10 (JPEG), group norm, under 15 corruptions, one image at a time, severity 5",
    budget={"currency": "passes", "limit": 800000, "wall_seconds": 14400.0, "memory_mb": 8192},
    data=("cifar10-jpeg", "models", "frost-pictures"),
    grants=("images", "norm-layers", "source-unlabeled", "source-data", "source-posterior"),
    bundle="cifar10-jpeg-c-gn",
    preset="cifar10/bs1",
)
class Cifar10JpegCGNSingles(_GroupNorm, Singles):
    """The stream of `cifar10-jpeg-c-bs1` over the ResNet-26 with group norm."""
