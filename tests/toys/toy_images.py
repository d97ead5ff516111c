"""Small tasks for tests of the harness that grant what blobs cannot: images, domains, source data, tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from selfbench import AdaptationTask, Bundle, Recipe, Stream, StreamTask, register_task
from selfbench.suite.protocols.adaptation import Split, Vocabulary
from selfbench.suite.protocols.stream import even_cuts

N, SHOWN, SIDE, K = 150, 60, 8, 3
SPECIAL, MASK, WORDS = (0, 1), 1, 14


def pictures(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bars in one of three directions, coloured and noisy: float32 (n, 3, 8, 8) in [0, 1], and their classes (n,)."""
    draw = np.random.default_rng(seed)
    y = draw.permutation(np.arange(n) % K)
    row, column = np.mgrid[:SIDE, :SIDE]
    waves = np.stack([np.sin(1.5 * row), np.sin(1.5 * column), np.sin(1.1 * (row + column))])
    colour = 0.5 + 0.5 * draw.random((n, 3, 1, 1))
    x = 0.5 + 0.3 * colour * waves[y][:, None] + 0.12 * draw.normal(size=(n, 3, SIDE, SIDE))
    return np.clip(x, 0.0, 1.0).astype(np.float32), y.astype(np.int64)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K),
    )  # fmt: skip


@register_task(
    "toy-image-stream",
    protocol="stream",
    version="1",
    metric="error",
    title="Toy image stream",
    budget={"currency": "passes", "limit": 200000, "wall_seconds": 60, "memory_mb": 2048},
    data=(),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
)
class ToyImageStream(StreamTask):
    """Two domains of bars, darker ones and noisier ones, each once; the method starts anew for the second."""

    n_classes = K
    clean_error = (0.0, 0.4)

    def build(self, data) -> Bundle:
        x, y = pictures(N, 0)
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        clean = float((model(torch.from_numpy(x)).argmax(1).numpy() != y).mean())
        fresh, labels = pictures(SHOWN, 1)
        noise = 0.15 * np.random.default_rng(2).normal(size=fresh.shape)
        shifted = np.concatenate([0.6 * fresh, np.clip(fresh + noise, 0.0, 1.0)]).astype(np.float32)
        weights = np.concatenate([parameter.detach().numpy().ravel() for parameter in model.parameters()])
        public = {
            "x": shifted, "source_images": x, "source_labels": y, "posterior_mean": weights,
            "posterior_variance": np.full_like(weights, 1e-4),
        }  # fmt: skip
        return Bundle(public, {"labels": np.concatenate([labels, labels])}, model.state_dict(), {"clean_error": clean})

    def model(self) -> nn.Module:
        return network()

    def stream(self, bundle, seed: int) -> Stream:
        draw = np.random.default_rng(seed)
        indices = np.concatenate([draw.permutation(SHOWN), SHOWN + draw.permutation(SHOWN)])
        domains = np.repeat(np.arange(2), SHOWN)
        return Stream(indices, even_cuts(2 * SHOWN, 20), domains, ("dark", "noisy"), np.array([3]))

    def images(self, public, indices) -> Tensor:
        return torch.from_numpy(public["x"][indices])

    def source_images(self, public, indices) -> Tensor:
        return torch.from_numpy(public["source_images"][indices])


@register_task(
    "toy-images",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Toy images",
    budget={"currency": "passes", "limit": 8000, "wall_seconds": 60, "memory_mb": 2048},
    data=(),
    grants=(
        "images", "norm-layers", "batch-norm", "strong-augmentation", "domains", "test-inputs", "oracle-labels",
        "real-inputs",
    ),
)  # fmt: skip
class ToyImages(AdaptationTask):
    """Bars of two labelled and two unlabelled domains, which differ in brightness."""

    n_classes = K
    recipe = Recipe(lr=0.05, batch_size=8, ema=0.9, points=2)

    def build(self, data) -> Bundle:
        x, y = pictures(2 * N, 3)
        domains = np.arange(2 * N) % 4
        return Bundle({"x": (x * (1.0 - 0.15 * domains[:, None, None, None])).astype(np.float32)},
                      {"labels": y, "domains": domains})  # fmt: skip

    def model(self) -> nn.Module:
        return nn.Sequential(network()[:-1], nn.Dropout(0.1), nn.Linear(8, K))

    def split(self, bundle, seed: int) -> Split:
        labels, domains = (np.asarray(bundle.private()[name]) for name in ("labels", "domains"))
        order = np.random.default_rng(seed).permutation(2 * N)
        source, target = order[domains[order] < 2], order[domains[order] >= 2]
        return Split(
            source[:24], labels[source[:24]], target[20:90], target[:20], target[90:],
            labeled_domains=domains[source[:24]], unlabeled_domains=domains[target[20:90]],
        )  # fmt: skip

    def inputs(self, public, indices) -> Tensor:
        return torch.from_numpy(public["x"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.02 * torch.randn(inputs.shape, generator=generator, device=inputs.device)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, device=inputs.device)


class Reader(nn.Module):
    """Ids (B, T) -> logits (B, 3): the mean of the words' embeddings, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(WORDS, 12), nn.LayerNorm(12), nn.Linear(12, K)

    def states(self, ids: Tensor) -> Tensor:
        embedded = self.words(ids)
        return self.norm(embedded + embedded.mean(dim=1, keepdim=True))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.dropout(self.states(ids).mean(dim=1), 0.1, self.training))
        return logits


class Guesser(nn.Module):
    """Ids (B, T), and which of them (B, T) -> logits (M, 14) of the tokens there, by the embeddings themselves."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        logits: Tensor = self.reader.states(ids)[places] @ self.reader.words.weight.T
        return logits


@register_task(
    "toy-tokens",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Toy tokens",
    budget={"currency": "passes", "limit": 8000, "wall_seconds": 60, "memory_mb": 2048},
    data=(),
    grants=("masked-tokens", "norm-layers"),
)
class ToyTokens(AdaptationTask):
    """Texts of six words, three of them from a class's own four."""

    n_classes = K
    recipe = Recipe(optimizer="adamw", lr=0.02, weight_decay=0.0, batch_size=8, ema=0.0, points=2)

    def build(self, data) -> Bundle:
        draw = np.random.default_rng(5)
        y = draw.permutation(np.arange(2 * N) % K)
        own = 2 + 4 * y[:, None] + draw.integers(4, size=(2 * N, 3))
        other = draw.integers(2, WORDS, size=(2 * N, 3))
        return Bundle({"x": np.concatenate([own, other], axis=1)}, {"labels": y})

    def model(self) -> nn.Module:
        return Reader()

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(WORDS, MASK, SPECIAL)

    def language_model(self, model) -> nn.Module:
        return Guesser(model)

    def split(self, bundle, seed: int) -> Split:
        labels, order = np.asarray(bundle.private()["labels"]), np.random.default_rng(seed).permutation(2 * N)
        return Split(order[:12], labels[order[:12]], order[30:130], order[12:30], order[130:])

    def inputs(self, public, indices) -> Tensor:
        return torch.from_numpy(public["x"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        hidden = torch.rand(inputs.shape, generator=generator, device=inputs.device) < 0.1
        return torch.where(hidden, MASK, inputs)
