"""Miniatures of WILDS, written once a session, and the tasks as they are but for what only the full size needs."""

from __future__ import annotations

import dataclasses
import importlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.meter import Meter
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.context import Context
from selfbench.suite.scorer import Outcome, make_scorer
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire
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
    if issubclass(published, WildsImages):
        changes |= {"side": 16, "evaluation_batch": 32, "model": _small_network}
    return type(f"Miniature{published.__name__}", (published,), changes)()  # type: ignore[no-any-return]


def _small_network(self: WildsTask) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
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


@pytest.fixture
def play_wilds(tmp_path: Path) -> Callable[..., Outcome]:
    """play_wilds(method, task, bundle, ...): the real loop here, the real scorer at the other end of a real line."""

    def call(method: Any, task: WildsTask, bundle: BundleFolder, limit: float, seed: int = 0) -> Outcome:
        options = type(task).__selfbench__  # type: ignore[attr-defined]
        spec = RunSpec(
            task=TaskRef(name=options["name"], version=options["version"]),
            method=MethodRef(name="tested", version="1"),
            seed=seed,
            budget=Budget(limit=limit),
            selection=options["selection"],
        )
        scorer = make_scorer(task, bundle, spec, tmp_path)
        ours, theirs = socket.socketpair()
        errors: list[Exception] = []

        def listen() -> None:
            wire = Wire(ours)
            try:
                while (message := wire.receive()) is not None:
                    scorer.handle(message, wire)
            except Exception as error:
                errors.append(error)
                ours.close()

        listener = threading.Thread(target=listen)
        listener.start()
        context = Context(spec, torch.device("cpu"), Wire(theirs), tmp_path, checkpoint_seconds=1e9)
        needs = type(method).__selfbench__["needs"]
        try:
            with torch.random.fork_rng(devices=[]):
                meter = Meter(spec.budget, "tested")
                run_adaptation(method, task, bundle.public(), scorer.plan(), meter, context, needs)
        finally:
            theirs.close()
            listener.join()
            ours.close()
        if errors:
            raise errors[0]
        return scorer.outcome()

    return call
