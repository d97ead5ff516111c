"""The protocol `stream`: a model meets unlabelled batches in order, once, and predicts each before seeing the next.

`StreamTask` is what a task author writes, `StreamMethod` what a method author writes. The loop that joins them is
in `stream_loop.py`; labels and domains stay with the scorer, in another process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array, Bundle, BundleFolder
from ..scoring import Scores, score_classification
from .frozen_passes import FrozenCache, FrozenPasses

if TYPE_CHECKING:
    from ..data import Data


def _none() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Stream:
    """An immutable, hashed order: which images come when, in which batches.

    `indices` (N,) into the public arrays, `cuts` (T + 1,) from 0 to N: batch t is `indices[cuts[t]:cuts[t + 1]]`;
    `domains` (N,) into `domain_names`, known to the scorer alone. Before each batch in `resets` (R,) the harness puts
    the method back to where `setup` left it. When the stream has ended, the method's predictor is shown the images
    `after` (M,), such as clean ones, in batches of the stream's usual size; they teach it nothing.
    """

    indices: Array
    cuts: Array
    domains: Array
    domain_names: tuple[str, ...]
    resets: Array = field(default_factory=_none)
    after: Array = field(default_factory=_none)

    def __post_init__(self) -> None:
        if self.cuts[0] != 0 or self.cuts[-1] != len(self.indices) or np.any(np.diff(self.cuts) <= 0):
            raise ValueError("cuts must rise strictly from 0 to the length of the stream")
        if len(self.domains) != len(self.indices):
            raise ValueError("every image of the stream needs a domain")
        if len(self.resets) and (self.resets[0] <= 0 or self.resets[-1] >= len(self.cuts) - 1):
            raise ValueError("resets are batches of the stream from 1")
        for array in (self.indices, self.cuts, self.domains, self.resets, self.after):
            array.setflags(write=False)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in (self.indices, self.cuts, self.domains):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes() + b"|")
        digest.update("\0".join(self.domain_names).encode())
        for name, array in (("resets", self.resets), ("after", self.after)):
            if len(array):
                digest.update(name.encode() + np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    @property
    def after_cuts(self) -> Array:
        """Cuts (S + 1,) of `after` into batches of the stream's usual size."""
        return even_cuts(len(self.after), int(np.diff(self.cuts).max()))


def even_cuts(n: int, batch_size: int) -> Array:
    """Cuts of n images into batches of `batch_size`; the last one may be shorter."""
    return np.append(np.arange(0, n, batch_size), n)


class StreamTask:
    """A stream task: data, source model, order, metric."""

    n_classes: ClassVar[int]
    tell: Callable[[str], None] = staticmethod(lambda text: None)
    """Where a long `build` says how far it is; the harness listens."""
    clean_error: ClassVar[tuple[float, float]]
    """The range in which the source model's measured clean error must lie (fact `clean_error` of the bundle)."""

    def build(self, data: Data) -> Bundle:
        """Decode the data and train or load the source model; runs once, in a process of its own."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """The architecture of the source model, (B, C, H, W) -> logits (B, K); the harness loads the weights."""
        raise NotImplementedError

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        """The order of one run. Called by the scorer; it may read labels, for sorted and correlated orders."""
        raise NotImplementedError

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """The images `indices` as a float tensor (B, C, H, W) in [0, 1]; must be a pure function.

        What further preprocessing the weights want (mean and standard deviation) is part of `model`.
        """
        raise NotImplementedError

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """As `images`, of the source: for tasks that grant `source-unlabeled` or `source-data`.

        The public arrays `source_images` (N, ...) and `source_labels` (N,) lie in their bundle, or in that of
        `build_source`. For `source-posterior` there are `posterior_mean` and `posterior_variance` (P,), of all
        parameters of the model, flattened and joined in their order, in the bundle or in that of `build_posterior`.
        """
        raise NotImplementedError

    def build_source(self, data: Data) -> Bundle:
        """The public arrays of the source's own images, for a task whose registration names `source`.

        Runs once, in a process of its own, and only where a method needs them.
        """
        raise NotImplementedError

    def build_posterior(self, bundle: BundleFolder, source: BundleFolder) -> Bundle:
        """The posterior around the weights of `bundle`, on what `build_source` has made; as `build_source`."""
        raise NotImplementedError

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """The true classes (N,) of the images `indices`; called by the scorer alone."""
        return private["labels"][indices]

    def score(self, logits: Array, labels: Array, domains: Array, domain_names: tuple[str, ...]) -> Scores:
        """Metrics over the whole stream and by domain, from sealed logits (N, K).

        `mean_domain_error` weighs every domain alike. Where all are of one size it is the error, and is left out.
        """
        scores = score_classification(logits, labels, domains, domain_names)
        counts = np.bincount(domains.astype(np.int64))
        if len(set(counts[counts > 0].tolist())) > 1:
            by_domain = scores.groups["error"].values()
            scores.metrics["mean_domain_error"] = float(np.mean(list(by_domain)))
        return scores


@dataclass
class Source:
    """What the harness hands to `StreamMethod.setup` beside the model.

    `generator` is the method's own random stream, on the run's device. The rest is None unless the method declares
    that it needs it: `images` gives source images by index (`source-unlabeled`, `source-data`), `labels` (N,) their
    classes (`source-data`), `posterior` the means and variances of the model's parameters, in their order and
    shapes (`source-posterior`). `cache` is for `frozen`.
    """

    n_classes: int
    device: torch.device
    generator: torch.Generator
    images: SourceImages | None = None
    labels: Tensor | None = None
    posterior: tuple[list[Tensor], list[Tensor]] | None = None
    cache: FrozenCache | None = None

    def frozen(self, model: nn.Module, statistics: Literal["source", "batch"] = "source") -> FrozenPasses:
        """Passes through `model`, the source model in eval mode, which is never changed.

        They come from a cache, which all methods share, when the method names `statistics` in `frozen` of its
        registration, and "<statistics>-features" too for those of `with_features`; what does not fit into the cache is
        computed. They are counted as computed in any case. "batch" says that batch norm uses the statistics of each
        batch alone.
        """
        return FrozenPasses(model, statistics, self.cache)


class SourceImages:
    """The images that trained the source model: `len(images)`, and `images(indices)` -> (B, C, H, W) in [0, 1]."""

    def __init__(self, task: StreamTask, public: Mapping[str, Array], device: torch.device) -> None:
        self._task, self._public, self._device = task, public, device

    def __len__(self) -> int:
        return len(self._public["source_images"])

    def __call__(self, indices: Tensor | Array) -> Tensor:
        chosen = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        return self._task.source_images(self._public, chosen).to(self._device)


@dataclass
class StreamMethod:
    """A method for streams: a dataclass whose fields are its hyper-parameters.

    `setup` is called once with the source model in eval mode, on the run's device; `predict` then batch by batch. The
    returned logits are sealed before the next batch is shown. When the budget is used up, the rest of the stream is
    predicted by `predictor()` as it then stands, off the meter.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def setup(self, model: nn.Module, source: Source) -> None:
        """Prepare for the stream; keep the model as `self.model`."""
        self.model = model

    def predict(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K); may adapt before or after predicting."""
        raise NotImplementedError

    def predictor(self) -> nn.Module:
        """The module that predicts when adaptation has ended."""
        return self.model
