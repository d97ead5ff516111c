"""PACS: seven kinds of things as photographs, art paintings, cartoons and sketches."""

from __future__ import annotations

from typing import ClassVar

from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from .domains import DomainAdaptation


class Pacs(DomainAdaptation):
    """PACS (Li et al. 2017, arXiv:1710.03077), 9,991 images."""

    data_name: ClassVar[str] = "pacs"
    n_classes: ClassVar[int] = 7
    domains: ClassVar[tuple[str, ...]] = ("photo", "art_painting", "cartoon", "sketch")
    sizes: ClassVar[tuple[int, ...]] = (1670, 2048, 2344, 3929)


@register_task(
    "pacs-to-photo",
    protocol="adaptation",
    version="1",
    metric="error",
    title="PACS, three labelled domains to photographs",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("pacs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="pacs-adaptation",
    decoded={"pictures": 9991, "shape": (3, 224, 224)},
)
class PacsToPhoto(Pacs):
    """Labelled art paintings, cartoons and sketches; unlabelled photographs."""

    target_domains: ClassVar[tuple[str, ...]] = ("photo",)


@register_task(
    "pacs-to-art-painting",
    protocol="adaptation",
    version="1",
    metric="error",
    title="PACS, three labelled domains to art paintings",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("pacs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="pacs-adaptation",
    decoded={"pictures": 9991, "shape": (3, 224, 224)},
)
class PacsToArtPainting(Pacs):
    """Labelled photographs, cartoons and sketches; unlabelled art paintings."""

    target_domains: ClassVar[tuple[str, ...]] = ("art_painting",)


@register_task(
    "pacs-to-cartoon",
    protocol="adaptation",
    version="1",
    metric="error",
    title="PACS, three labelled domains to cartoons",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("pacs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="pacs-adaptation",
    decoded={"pictures": 9991, "shape": (3, 224, 224)},
)
class PacsToCartoon(Pacs):
    """Labelled photographs, art paintings and sketches; unlabelled cartoons."""

    target_domains: ClassVar[tuple[str, ...]] = ("cartoon",)


@register_task(
    "pacs-to-sketch",
    protocol="adaptation",
    version="1",
    metric="error",
    title="PACS, three labelled domains to sketches",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("pacs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="pacs-adaptation",
    decoded={"pictures": 9991, "shape": (3, 224, 224)},
)
class PacsToSketch(Pacs):
    """Labelled photographs, art paintings and cartoons; unlabelled sketches."""

    target_domains: ClassVar[tuple[str, ...]] = ("sketch",)


@register_task(
    "pacs-from-photo",
    protocol="adaptation",
    version="1",
    metric="error",
    title="PACS, photographs to three other domains",
    budget={"currency": "passes", "limit": 480000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("pacs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="pacs-adaptation",
    decoded={"pictures": 9991, "shape": (3, 224, 224)},
    variants={
        "pacs-from-art-painting": {
            "title": "PACS, art paintings to three other domains",
            "set": {"source_domains": ("art_painting",), "target_domains": ("photo", "cartoon", "sketch")},
        },
        "pacs-from-cartoon": {
            "title": "PACS, cartoons to three other domains",
            "set": {"source_domains": ("cartoon",), "target_domains": ("photo", "art_painting", "sketch")},
        },
        "pacs-from-sketch": {
            "title": "PACS, sketches to three other domains",
            "set": {"source_domains": ("sketch",), "target_domains": ("photo", "art_painting", "cartoon")},
        },
    },
)
class PacsFromPhoto(Pacs):
    """Labelled one domain: photographs, or that of the title; unlabelled the three others."""

    source_domains: ClassVar[tuple[str, ...]] = ("photo",)
    target_domains: ClassVar[tuple[str, ...]] = ("art_painting", "cartoon", "sketch")
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=5e-5, weight_decay=0.0, batch_size=32, ema=0.0, schedule=constant
    )
