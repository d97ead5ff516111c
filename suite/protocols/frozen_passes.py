"""Passes of the source model that no method changes: computed once and shared by all methods, or when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..bundle import Array, BundleFolder
from ..meter import Meter
from .features import forward_with_features

STATISTICS = ("source", "batch")
"""What batch norm normalises with: the statistics of the source, or those of each batch."""


def order_digest(indices: Array, cuts: Array) -> str:
    """The digest of which images come when, in which batches."""
    digest = hashlib.sha256()
    for array in (indices, cuts):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()


def use_batch_statistics(model: nn.Module) -> None:
    """Make batch norm layers normalise with the statistics of the batch, in eval mode too.

    The statistics of the source are dropped. The variance is the biased one, as in training. A model
    without batch norm is left as it is.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None


class FrozenCache:
    """The passes that were computed before the run, and the batch that is being shown."""

    def __init__(self, folders: Mapping[str, str], plan: Mapping[str, Array], meter: Meter, device: torch.device):
        self._meter, self._device, self._cuts = meter, device, plan["cuts"]
        self._shown: Tensor | None = None
        self._batch = 0
        self._arrays: dict[str, dict[str, Array]] = {}
        expected = {
            "order": order_digest(plan["indices"], plan["cuts"]),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }
        for part, path in folders.items():
            folder = BundleFolder(Path(path))
            # A cache of another order or kind of processor is no cache.
            if folder.exists and {name: folder.facts.get(name) for name in expected} == expected:
                self._arrays[part] = folder.public()

    def show(self, batch: int, images: Tensor) -> None:
        """From now on, `images` is batch number `batch` of the stream."""
        self._batch, self._shown = batch, images

    def get(self, images: Tensor, statistics: str, names: tuple[str, ...]) -> list[Tensor] | None:
        """Arrays of the batch that is being shown, counted as one computed pass; None when one is not here."""
        arrays = self._arrays.get(statistics, {}) | self._arrays.get(f"{statistics}-features", {})
        if images is not self._shown or not all(name in arrays for name in names):
            return None
        self._meter.charge(forward=len(images))
        part = slice(self._cuts[self._batch], self._cuts[self._batch + 1])
        return [torch.from_numpy(np.array(arrays[name][part])).to(self._device) for name in names]


class FrozenPasses:
    """Passes without gradients through a model that is never changed.

    `model` must be the source model in eval mode, its batch norm layers using `statistics`. A batch that is being shown
    is taken from the cache where it is there and counts as if it were computed; all else is computed.
    """

    def __init__(self, model: nn.Module, statistics: str, cache: FrozenCache | None) -> None:
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {STATISTICS}, got {statistics!r}")
        self._model, self._statistics, self._cache = model, statistics, cache

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        found = self._cache.get(images, self._statistics, ("logits",)) if self._cache is not None else None
        return self._model(images) if found is None else found[0]

    @torch.no_grad()
    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and the flattened input (B, D) of the last linear layer; None where the model calls none."""
        found = self._cache.get(images, self._statistics, ("logits", "features")) if self._cache is not None else None
        return forward_with_features(self._model, images) if found is None else (found[0], found[1])

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPasses:
        return self
