"""VLCS: five kinds of things in four collections of photographs."""

from __future__ import annotations

from typing import ClassVar

from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from .domains import DomainAdaptation


class Vlcs(DomainAdaptation):
    """VLCS (Fang et al., ICCV 2013), 10,729 photographs."""

    data_name: ClassVar[str] = "vlcs"
    n_classes: ClassVar[int] = 5
    domains: ClassVar[tuple[str, ...]] = ("VOC2007", "LabelMe", "Caltech101", "SUN09")
    # The only sizes of which all accuracies in DomainBed's tests (commit b93c22a) are shares.
    sizes: ClassVar[tuple[int, ...]] = (3376, 2656, 1415, 3282)


@register_task(
    "vlcs-to-voc2007",
    protocol="adaptation",
    version="1",
    metric="error",
    title="VLCS, three labelled domains to VOC2007",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("vlcs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="vlcs-adaptation",
    decoded={"pictures": 10729, "shape": (3, 224, 224)},
)
class VlcsToVOC2007(Vlcs):
    """Labelled LabelMe, Caltech101 and SUN09; unlabelled VOC2007."""

    target_domains: ClassVar[tuple[str, ...]] = ("VOC2007",)


@register_task(
    "vlcs-to-labelme",
    protocol="adaptation",
    version="1",
    metric="error",
    title="VLCS, three labelled domains to LabelMe",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("vlcs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="vlcs-adaptation",
    decoded={"pictures": 10729, "shape": (3, 224, 224)},
)
class VlcsToLabelme(Vlcs):
    """Labelled VOC2007, Caltech101 and SUN09; unlabelled LabelMe."""

    target_domains: ClassVar[tuple[str, ...]] = ("LabelMe",)


@register_task(
    "vlcs-to-caltech101",
    protocol="adaptation",
    version="1",
    metric="error",
    title="VLCS, three labelled domains to Caltech101",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("vlcs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="vlcs-adaptation",
    decoded={"pictures": 10729, "shape": (3, 224, 224)},
)
class VlcsToCaltech101(Vlcs):
    """Labelled VOC2007, LabelMe and SUN09; unlabelled Caltech101."""

    target_domains: ClassVar[tuple[str, ...]] = ("Caltech101",)


@register_task(
    "vlcs-to-sun09",
    protocol="adaptation",
    version="1",
    metric="error",
    title="VLCS, three labelled domains to SUN09",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("vlcs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="vlcs-adaptation",
    decoded={"pictures": 10729, "shape": (3, 224, 224)},
)
class VlcsToSUN09(Vlcs):
    """Labelled VOC2007, LabelMe and Caltech101; unlabelled SUN09."""

    target_domains: ClassVar[tuple[str, ...]] = ("SUN09",)


@register_task(
    "vlcs-from-voc2007",
    protocol="adaptation",
    version="1",
    metric="error",
    title="VLCS, VOC2007 to three other domains",
    budget={"currency": "passes", "limit": 480000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("vlcs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="vlcs-adaptation",
    decoded={"pictures": 10729, "shape": (3, 224, 224)},
    variants={
        "vlcs-from-labelme": {
            "title": "VLCS, LabelMe to three other domains",
            "set": {"source_domains": ("LabelMe",), "target_domains": ("VOC2007", "Caltech101", "SUN09")},
        },
        "vlcs-from-caltech101": {
            "title": "VLCS, Caltech101 to three other domains",
            "set": {"source_domains": ("Caltech101",), "target_domains": ("VOC2007", "LabelMe", "SUN09")},
        },
        "vlcs-from-sun09": {
            "title": "VLCS, SUN09 to three other domains",
            "set": {"source_domains": ("SUN09",), "target_domains": ("VOC2007", "LabelMe", "Caltech101")},
        },
    },
)
class VlcsFromVOC2007(Vlcs):
    """Labelled one domain: VOC2007, or that of the title; unlabelled the three others."""

    source_domains: ClassVar[tuple[str, ...]] = ("VOC2007",)
    target_domains: ClassVar[tuple[str, ...]] = ("LabelMe", "Caltech101", "SUN09")
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=5e-5, weight_decay=0.0, batch_size=32, ema=0.0, schedule=constant
    )
