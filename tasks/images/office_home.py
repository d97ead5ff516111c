"""Office-Home: 65 kinds of things in art, as clip art, from shops and as photographs."""

from __future__ import annotations

from typing import ClassVar

from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from .domains import DomainAdaptation


class OfficeHome(DomainAdaptation):
    """Office-Home (Venkateswara et al. 2017, arXiv:1706.07522), 15,588 images."""

    data_name: ClassVar[str] = "office-home"
    n_classes: ClassVar[int] = 65
    domains: ClassVar[tuple[str, ...]] = ("Art", "Clipart", "Product", "Real World")
    # As several public repositories count the archive.
    sizes: ClassVar[tuple[int, ...]] = (2427, 4365, 4439, 4357)


@register_task(
    "office-home-to-art",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Office-Home, three labelled domains to art",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("office-home", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="office-home-adaptation",
    decoded={"pictures": 15588, "shape": (3, 224, 224)},
)
class OfficeHomeToArt(OfficeHome):
    """Labelled clip art, pictures of products and photographs; unlabelled art."""

    target_domains: ClassVar[tuple[str, ...]] = ("Art",)


@register_task(
    "office-home-to-clipart",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Office-Home, three labelled domains to clip art",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("office-home", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="office-home-adaptation",
    decoded={"pictures": 15588, "shape": (3, 224, 224)},
)
class OfficeHomeToClipart(OfficeHome):
    """Labelled art, pictures of products and photographs; unlabelled clip art."""

    target_domains: ClassVar[tuple[str, ...]] = ("Clipart",)


@register_task(
    "office-home-to-product",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Office-Home, three labelled domains to pictures of products",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("office-home", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="office-home-adaptation",
    decoded={"pictures": 15588, "shape": (3, 224, 224)},
)
class OfficeHomeToProduct(OfficeHome):
    """Labelled art, clip art and photographs; unlabelled pictures of products."""

    target_domains: ClassVar[tuple[str, ...]] = ("Product",)


@register_task(
    "office-home-to-real-world",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Office-Home, three labelled domains to photographs",
    budget={"currency": "passes", "limit": 1440000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("office-home", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="office-home-adaptation",
    decoded={"pictures": 15588, "shape": (3, 224, 224)},
)
class OfficeHomeToRealWorld(OfficeHome):
    """Labelled art, clip art and pictures of products; unlabelled photographs."""

    target_domains: ClassVar[tuple[str, ...]] = ("Real World",)


@register_task(
    "office-home-from-real-world",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Office-Home, photographs to three other domains",
    budget={"currency": "passes", "limit": 480000, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("office-home", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="office-home-adaptation",
    decoded={"pictures": 15588, "shape": (3, 224, 224)},
    variants={
        "office-home-from-art": {
            "title": "Office-Home, art to three other domains",
            "set": {"source_domains": ("Art",), "target_domains": ("Clipart", "Product", "Real World")},
        },
        "office-home-from-clipart": {
            "title": "Office-Home, clip art to three other domains",
            "set": {"source_domains": ("Clipart",), "target_domains": ("Art", "Product", "Real World")},
        },
        "office-home-from-product": {
            "title": "Office-Home, pictures of products to three other domains",
            "set": {"source_domains": ("Product",), "target_domains": ("Art", "Clipart", "Real World")},
        },
    },
)
class OfficeHomeFromRealWorld(OfficeHome):
    """Labelled one domain: photographs, or that of the title; unlabelled the three others."""

    source_domains: ClassVar[tuple[str, ...]] = ("Real World",)
    target_domains: ClassVar[tuple[str, ...]] = ("Art", "Clipart", "Product")
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=5e-5, weight_decay=0.0, batch_size=32, ema=0.0, schedule=constant
    )
