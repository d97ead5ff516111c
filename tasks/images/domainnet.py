"""DomainNet: 345 kinds of things in six domains."""

from __future__ import annotations

from typing import ClassVar

from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from .domains import DomainAdaptation


class DomainNet(DomainAdaptation):
    """DomainNet (Peng et al. 2019, arXiv:1812.01754), 586,575 images in its cleaned version.

    The recipe is that of WILDS 2.0's public code (arXiv:2112.05090) for photographs to sketches: SGD with momentum, not
    Nesterov's, at a constant rate of 7.0e-4, weight decay 1e-4, batches of 96; the budget is that of its 25 epochs over
    the labelled photographs here, and the same for all other domains. Splits are those of all tasks on folders, not the
    published lists.
    """

    data_name: ClassVar[str] = "domainnet"
    n_classes: ClassVar[int] = 345
    domains: ClassVar[tuple[str, ...]] = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    recipe: ClassVar[Recipe] = Recipe(
        lr=0.0007035737, nesterov=False, weight_decay=1e-4, batch_size=96, ema=0.0, points=25, schedule=constant
    )


@register_task(
    "domainnet-to-sketch",
    protocol="adaptation",
    version="1",
    metric="error",
    title="DomainNet, five labelled domains to sketches",
    budget={"currency": "passes", "limit": 10376850, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("domainnet", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="domainnet-adaptation",
    preset="wilds-domainnet",
    decoded={"pictures": 586575, "shape": (3, 224, 224)},
)
class DomainNetToSketch(DomainNet):
    """Labelled all other domains; unlabelled sketches."""

    target_domains: ClassVar[tuple[str, ...]] = ("sketch",)


@register_task(
    "domainnet-to-clipart",
    protocol="adaptation",
    version="1",
    metric="error",
    title="DomainNet, five labelled domains to clip art",
    budget={"currency": "passes", "limit": 10376850, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("domainnet", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="domainnet-adaptation",
    preset="wilds-domainnet",
    decoded={"pictures": 586575, "shape": (3, 224, 224)},
    variants={
        "domainnet-to-infograph": {
            "title": "DomainNet, five labelled domains to infographics",
            "set": {"target_domains": ("infograph",)},
        },
        "domainnet-to-painting": {
            "title": "DomainNet, five labelled domains to paintings",
            "set": {"target_domains": ("painting",)},
        },
        "domainnet-to-quickdraw": {
            "title": "DomainNet, five labelled domains to quick drawings",
            "set": {"target_domains": ("quickdraw",)},
        },
        "domainnet-to-real": {
            "title": "DomainNet, five labelled domains to photographs",
            "set": {"target_domains": ("real",)},
        },
    },
)
class DomainNetToClipart(DomainNet):
    """Labelled all domains but the unlabelled one: clip art, or that of the title."""

    target_domains: ClassVar[tuple[str, ...]] = ("clipart",)


@register_task(
    "domainnet-real-to-sketch",
    protocol="adaptation",
    version="1",
    metric="error",
    title="DomainNet, photographs to sketches",
    budget={"currency": "passes", "limit": 10376850, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("domainnet", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="domainnet-adaptation",
    preset="wilds-domainnet",
    decoded={"pictures": 586575, "shape": (3, 224, 224)},
)
class DomainNetRealToSketch(DomainNet):
    """Labelled photographs; unlabelled sketches: the pair of WILDS 2.0."""

    source_domains: ClassVar[tuple[str, ...]] = ("real",)
    target_domains: ClassVar[tuple[str, ...]] = ("sketch",)


@register_task(
    "domainnet-from-real",
    protocol="adaptation",
    version="1",
    metric="error",
    title="DomainNet, photographs to five other domains",
    budget={"currency": "passes", "limit": 10376850, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("domainnet", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains", "oracle-labels"),
    tags=("gpu",),
    selection="source-validation",
    bundle="domainnet-adaptation",
    preset="wilds-domainnet",
    decoded={"pictures": 586575, "shape": (3, 224, 224)},
    variants={
        "domainnet-from-clipart": {
            "title": "DomainNet, clip art to five other domains",
            "set": {
                "source_domains": ("clipart",),
                "target_domains": ("infograph", "painting", "quickdraw", "real", "sketch"),
            },
        },
        "domainnet-from-infograph": {
            "title": "DomainNet, infographics to five other domains",
            "set": {
                "source_domains": ("infograph",),
                "target_domains": ("clipart", "painting", "quickdraw", "real", "sketch"),
            },
        },
        "domainnet-from-painting": {
            "title": "DomainNet, paintings to five other domains",
            "set": {
                "source_domains": ("painting",),
                "target_domains": ("clipart", "infograph", "quickdraw", "real", "sketch"),
            },
        },
        "domainnet-from-quickdraw": {
            "title": "DomainNet, quick drawings to five other domains",
            "set": {
                "source_domains": ("quickdraw",),
                "target_domains": ("clipart", "infograph", "painting", "real", "sketch"),
            },
        },
        "domainnet-from-sketch": {
            "title": "DomainNet, sketches to five other domains",
            "set": {
                "source_domains": ("sketch",),
                "target_domains": ("clipart", "infograph", "painting", "quickdraw", "real"),
            },
        },
    },
)
class DomainNetFromReal(DomainNet):
    """Labelled one domain: photographs, or that of the title; unlabelled the five others."""

    source_domains: ClassVar[tuple[str, ...]] = ("real",)
    target_domains: ClassVar[tuple[str, ...]] = ("clipart", "infograph", "painting", "quickdraw", "sketch")
