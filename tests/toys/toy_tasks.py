"""Small real tasks for tests of the harness: Gaussian blobs, trained and streamed in milliseconds."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from selfbench import AdaptationTask, Bundle, Recipe, Stream, StreamTask, register_task
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import cache_folder
from selfbench.suite.protocols.active import ActiveTask
from selfbench.suite.protocols.adaptation import Split
from selfbench.suite.protocols.stream import even_cuts

N = 600


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = 2.0 * np.eye(3, 4)
    y = rng.permutation(np.arange(n) % 3)
    return (centers[y] + 0.9 * rng.normal(size=(n, 4))).astype(np.float32), y.astype(np.int64)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


@register_task(
    "toy-stream",
    protocol="stream",
    version="1",
    metric="error",
    title="Toy stream",
    budget={"currency": "passes", "limit": 10000, "wall_seconds": 30, "memory_mb": 2048},
    data=(),
    grants=("norm-layers", "batch-norm"),
)
class ToyStream(StreamTask):
    """Two domains of shifted blobs."""

    n_classes = 3
    clean_error = (0.0, 0.3)

    def build(self, data) -> Bundle:
        x, y = blobs(N, 0)
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        clean = float((model(torch.from_numpy(x)).argmax(1).numpy() != y).mean())
        shifted = np.concatenate([x + 1.5, x * 2.0 - 1.0]).astype(np.float32)
        return Bundle({"x": shifted}, {"labels": np.concatenate([y, y])}, model.state_dict(), {"clean_error": clean})

    def model(self) -> nn.Module:
        return network()

    def stream(self, bundle, seed: int) -> Stream:
        rng = np.random.default_rng(seed)
        indices = np.concatenate([rng.permutation(N), N + rng.permutation(N)])
        domains = np.repeat(np.arange(2), N)
        return Stream(indices, even_cuts(2 * N, 50), domains, ("shift", "scale"))

    def images(self, public, indices) -> Tensor:
        return torch.from_numpy(public["x"][indices])


@register_task(
    "toy-fragile",
    protocol="stream",
    version="1",
    metric="error",
    title="Toy stream that cannot always be prepared",
    budget={"currency": "passes", "limit": 10000, "wall_seconds": 30, "memory_mb": 2048},
    data=(),
    grants=("norm-layers", "batch-norm"),
)
class ToyFragile(ToyStream):
    """The blobs of `toy-stream`; a file in the cache says what becomes of its preparation, and has to be there."""

    def build(self, data) -> Bundle:
        file = cache_folder() / "toy-fragile"
        if not file.exists():
            raise DataMissing(f"{file} is missing.\nType `touch {file}`.")
        wish = file.read_text()
        if wish == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        if wish == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if wish.startswith("wait for "):
            deadline = time.monotonic() + 60
            while not list(Path(wish.removeprefix("wait for ")).glob("toy-stream/*/*.json")):
                if time.monotonic() > deadline:
                    raise TimeoutError("no other run has ended meanwhile")
                time.sleep(0.05)
        return super().build(data)


@register_task(
    "toy-adaptation",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Toy adaptation",
    budget={"currency": "passes", "limit": 30000, "wall_seconds": 30, "memory_mb": 2048},
    data=(),
    grants=("real-inputs", "strong-augmentation", "test-inputs", "oracle-labels"),
)
class ToyAdaptation(AdaptationTask):
    """Blobs with four labels a class."""

    n_classes = 3
    recipe = Recipe(lr=0.05, batch_size=16, ema=0.9, points=4)

    def build(self, data) -> Bundle:
        x, y = blobs(N, 1)
        return Bundle({"x": x}, {"labels": y}, facts={"train_in_test": 11, "train_repeats": 0, "blobs": N})

    def model(self) -> nn.Module:
        return nn.Sequential(network(), nn.Dropout(0.1), nn.Linear(3, 3))

    def split(self, bundle, seed: int) -> Split:
        labels = np.asarray(bundle.private()["labels"])
        order = np.random.default_rng(seed).permutation(400)
        labeled = np.concatenate([order[labels[order] == k][:4] for k in range(3)])
        rest = order[~np.isin(order, labeled)]
        return Split(labeled, labels[labeled], rest[12:], rest[:12], np.arange(400, N))

    def inputs(self, public, indices) -> Tensor:
        return torch.from_numpy(public["x"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.05 * torch.randn(inputs.shape, generator=generator, device=inputs.device)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.3 * torch.randn(inputs.shape, generator=generator, device=inputs.device)


@register_task(
    "toy-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="Toy active learning",
    budget={"currency": "passes", "limit": 12000, "wall_seconds": 60, "memory_mb": 2048},
    data=(),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
)
class ToyActive(ActiveTask, ToyAdaptation):
    """The blobs of `toy-adaptation`: three queries of five labels, where the predictor is least sure."""

    rounds = 3
    query_size = 5

    def query(self, shown, size: int, draw) -> np.ndarray:
        return np.argsort(shown.logits.max(axis=1) - np.median(shown.logits, axis=1), kind="stable")[:size]
