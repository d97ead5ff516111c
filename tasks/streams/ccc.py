"""CCC: ImageNet under pairs of corruptions that change slowly, at a calibrated difficulty.

The order is the data set's own and its point: a seed chooses one of the three streams that are published of each
difficulty and speed (their seeds 43, 44 and 45, in turn), and shuffles nothing. Of each stream come the first 100,000
frames, at medium difficulty (accuracy of a ResNet-50 near 20 %) and speed 1,000. Domains are runs of 10,000 frames: the
error by domain is the error over time. Source data are those of `imagenet.py`, where the authors' own evaluation takes
EATA's Fisher information on the corrupted stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.errors import DataMissing
from ...suite.protocols.stream import Stream, StreamTask, even_cuts
from ...suite.registry import register_task
from .imagenet import (
    BATCH_SIZE,
    POSTERIOR_BATCH,
    POSTERIOR_SHOWN,
    RESIZE,
    SIDE,
    clean_names,
    imagenet_classes,
    source_bundle,
)
from .layouts.decode import decode
from .layouts.files import written
from .layouts.folders import decode_all, listed
from .layouts.shards import samples
from .pixels import as_images, labelled_batches
from .posterior import sampled_posterior
from .published_models import RESNET50

if TYPE_CHECKING:
    from ...suite.data import Data

STREAMS = tuple(f"baseline_20_transition+speed_1000_seed_{seed}" for seed in (43, 44, 45))


@register_task(
    "ccc-medium",
    protocol="stream",
    version="2",
    metric="error",
    title="CCC, medium difficulty, 100,000 frames",
    budget={"currency": "passes", "limit": 20500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("ccc", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "ccc", "data": ("imagenet-train", "imagenet", "torchvision-models")},
    bundle="ccc-medium",
    preset="imagenet",
)
class CCCMedium(StreamTask):
    """The first 100,000 frames of a stream in batches of 64; seeds 0, 1 and 2 have streams of their own.

    Public array `images`: uint8 (3 N, 3, 224, 224), stream by stream, as shown: 45 GB.
    """

    n_classes: ClassVar[int] = 1000
    clean_error: ClassVar[tuple[float, float]] = RESNET50.clean_error
    frames: ClassVar[int] = 100_000
    per_domain: ClassVar[int] = 10_000

    def build(self, data: Data) -> Bundle:
        folders = [data.file("ccc", stream) for stream in STREAMS]
        validation = data.file("imagenet", "val")
        clean = listed(validation, clean_names(data), imagenet_classes(validation))
        pixels = np.empty((len(clean.paths), 3, SIDE, SIDE), np.uint8)
        decode_all(clean.paths, pixels, SIDE, RESIZE)
        model = RESNET50.load(data)
        self.tell("measuring the source model")
        clean_error = RESNET50.gate(model, labelled_batches(pixels, clean.labels), data)
        labels: list[int] = []

        def fill(images: Array) -> None:
            for number, folder in enumerate(folders):
                for where, content, label in itertools.islice(samples(folder), self.frames):
                    images[len(labels)] = decode(content, where, SIDE)
                    labels.append(label)
                    if len(labels) % 1000 == 0:
                        self.tell(f"frame {len(labels):,} of {len(images):,}")
                here = len(labels) - number * self.frames
                if here < self.frames:
                    raise DataMissing(f"{folder} holds {here:,} frames of {self.frames:,}: add the next shards.")

        images = written((len(STREAMS) * self.frames, 3, SIDE, SIDE), fill)
        return Bundle(
            public={"images": images},
            private={"labels": np.array(labels)},
            model=model.state_dict(),
            facts={"clean_error": clean_error, "weights_sha256": RESNET50.digest(data)},
        )

    def model(self) -> nn.Module:
        return RESNET50.make()

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def build_source(self, data: Data) -> Bundle:
        return source_bundle(data, imagenet_classes(data.file("imagenet", "val")))

    def build_posterior(self, bundle: BundleFolder, source: BundleFolder) -> Bundle:
        return sampled_posterior(self, bundle, source, POSTERIOR_SHOWN, POSTERIOR_BATCH)

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["source_images"][indices])

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        order = seed % len(STREAMS) * self.frames + np.arange(self.frames)
        domains = np.arange(self.frames) // self.per_domain
        names = tuple(f"from frame {start:,}" for start in range(0, self.frames, self.per_domain))
        return Stream(order, even_cuts(self.frames, BATCH_SIZE), domains, names)
