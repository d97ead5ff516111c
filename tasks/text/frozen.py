"""The track `frozen-encoder`: sentence vectors of MiniLM that are computed once, and a head that is trained on them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array
from ...suite.protocols.adaptation import AdaptationTask, Recipe
from .minilm import WIDTH, embed, load_encoder, tokenize

if TYPE_CHECKING:
    from ...suite.data import Data


class FrozenVectors(AdaptationTask):
    """Model, recipe and views on the public array `vectors`; the pass of the frozen encoder is charged.

    Weak view: each feature is dropped with probability 0.1; strong view: with probability 0.5, and Gaussian noise as
    long as a quarter of the vector is added; what remains is scaled back to length 1.
    """

    recipe: ClassVar[Recipe] = Recipe(optimizer="adamw", lr=3e-3, weight_decay=1e-2, batch_size=32, ema=0.99)
    cached_passes: ClassVar[float] = 1.0

    def model(self) -> nn.Module:
        return nn.Sequential(Scale(20.0), nn.Linear(WIDTH, self.n_classes))

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return torch.from_numpy(np.array(public["vectors"][indices]))

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return drop_features(inputs, generator, share=0.1, noise=0.0)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return drop_features(inputs, generator, share=0.5, noise=0.25)


class Scale(nn.Module):
    """Multiplies by a constant: vectors of length 1 are short for a linear head."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * inputs


def drop_features(vectors: Tensor, generator: torch.Generator, share: float, noise: float) -> Tensor:
    """Zero a random `share` of the features of (B, D), add Gaussian noise of length `noise`, scale to length 1."""
    kept = torch.rand(vectors.shape, generator=generator, device=vectors.device) >= share
    result = vectors * kept
    if noise:
        spread = torch.randn(vectors.shape, generator=generator, device=vectors.device)
        result = result + spread * (noise / vectors.shape[1] ** 0.5)
    return F.normalize(result, dim=1)


def encode(
    data: Data, texts: Sequence[str], length: int, tell: Callable[[str], None]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The public arrays of a bundle and facts about how they came to be.

    `ids` uint16 (N, length), the token ids of the texts; `vectors` float32 (N, 384), their sentence vectors.
    """
    ids = tokenize(data, texts, length)
    started = time.perf_counter()
    vectors = embed(
        load_encoder(data),
        ids,
        workers=os.cpu_count() or 1,
        tell=lambda done: tell(f"encoding: {done:,} of {len(ids):,} texts"),
    )
    seconds = time.perf_counter() - started
    facts = {"encode_seconds": round(seconds, 1), "texts_per_second": round(len(ids) / seconds, 1)}
    return {"ids": ids, "vectors": vectors}, facts
