"""Miniatures of WILDS, written once a session, and the tasks as they are but for what only the full size needs."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.tasks.wilds.boxes import DETECTIONS
from selfbench.tasks.wilds.images import WildsImages
from selfbench.tasks.wilds.task import WildsTask

sys.path.append(str(Path(__file__).parent))
NAMES = ("camelyon17", "iwildcam", "fmow", "rxrx1", "civilcomments", "amazon")
CLASSES = {"iwildcam": 6, "rxrx1": 8}
"""Numbers of classes that the data sets' tables decide."""


@pytest.fixture(scope="session")
def miniatures() -> Any:
    """The module that writes them; skips where the package is missing."""
    pytest.importorskip("wilds", reason="needs the package wilds: pip install 'selfbench[wilds]'")
    return importlib.import_module("miniatures")


@pytest.fixture(scope="session")
def wilds_data(miniatures: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all miniatures."""
    root = tmp_path_factory.mktemp("wilds-data")
    for write in miniatures.ALL.values():
        write(root / "wilds")
    miniatures.distilbert(root / "distilbert-base-uncased")
    return root


@pytest.fixture
def at_home(wilds_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniatures are where tasks look for data."""
    monkeypatch.setenv("SELFBENCH_DATA", str(wilds_data))
    return wilds_data


def miniature_of(name: str) -> WildsTask:
    """The registered task on a miniature: fewer rows and classes, small batches, for pictures a small network."""
    published = registry.get("task", f"wilds-{name}").load()
    changes: dict[str, Any] = {
        "published_counts": False,
        "recipe": dataclasses.replace(published.recipe, batch_size=4, points=2),
        "n_classes": CLASSES.get(name, published.n_classes),
    }
    if issubclass(published, WildsImages) and name != "globalwheat":
        changes |= {"side": 16, "evaluation_batch": 32, "model": _small_network}
    if name == "globalwheat":
        changes |= {"side": 64, "evaluation_batch": 4, "model": lambda self: SmallDetector()}
    if name == "py150":
        changes |= {"n_classes": 30, "model": lambda self: nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30))}
    if name == "poverty":
        changes |= {"side": 16, "model": lambda self: _small_network(self, channels=8)}
    return type(f"Miniature{published.__name__}", (published,), changes)()  # type: ignore[no-any-return]


class SmallDetector(nn.Module):
    """Two boxes a picture, at places that are a linear function of its mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, images: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        corners = 32 + 32 * self.layer(images.mean(dim=(2, 3))).view(-1, 2, 4)
        if targets is not None:
            known = targets[:, :2].amin(dim=2, keepdim=True) >= 0
            return ((corners - targets[:, :2]) / 64).square().mul(known).mean()
        found = torch.zeros(len(images), DETECTIONS, 6)
        found[:, :2, :4], found[:, :2, 4], found[:, :2, 5] = corners, 0.9, 1.0
        return found


def _small_network(self: WildsTask, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, self.n_classes),
    )  # fmt: skip


@pytest.fixture(scope="session")
def miniature() -> Callable[[str], WildsTask]:
    return miniature_of


@pytest.fixture(scope="session")
def bundles(wilds_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], BundleFolder]]:
    """bundles(name): the built bundle of a miniature, each built once."""
    folder, built = tmp_path_factory.mktemp("wilds-bundles"), {}

    def get(name: str) -> BundleFolder:
        if name not in built:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SELFBENCH_DATA", str(wilds_data))
                built[name] = write_bundle(folder / name, miniature_of(name).build(Data(wilds_data)))
        return built[name]

    return get
