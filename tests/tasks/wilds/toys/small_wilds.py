"""A registered miniature of a WILDS task, for runs by the real engine."""

from __future__ import annotations

import dataclasses

from torch import nn

from selfbench.suite.registry import register_task
from selfbench.tasks.wilds.camelyon17 import WildsCamelyon17


@register_task(
    "small-wilds-camelyon17",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="Camelyon17-WILDS in small",
    budget={"currency": "passes", "limit": 400, "wall_seconds": 120, "memory_mb": 4096},
    data=("wilds-camelyon17",),
    grants=("images", "norm-layers", "strong-augmentation", "domains"),
    tags=("wilds",),
    selection="validation",
    decoded={"pictures": 160, "shape": (3, 96, 96)},
)
class SmallWildsCamelyon17(WildsCamelyon17):
    """A small network, two replicates, and no assertion of published row counts."""

    published_counts = False
    replicates = 2
    recipe = dataclasses.replace(WildsCamelyon17.recipe, batch_size=8, points=3, lr=0.05)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(576, 2)
        )
