"""CCC: ImageNet under pairs of corruptions that change slowly, at a calibrated difficulty.

The order is the data set's own and its point, so that no seed changes it; the first 100,000 frames of the stream of
medium difficulty (accuracy of a ResNet-50 near 20 %), speed 1,000, seed 44. Domains are runs of 10,000 frames: the
error by domain is the error over time.
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
from .imagenet import BATCH_SIZE, RESIZE, SIDE, clean_names, imagenet_classes
from .layouts.decode import decode
from .layouts.files import written
from .layouts.folders import decode_all, listed
from .layouts.shards import samples
from .pixels import as_images, labelled_batches
from .published_models import RESNET50

if TYPE_CHECKING:
    from ...suite.data import Data

STREAM = "baseline_20_transition+speed_1000_seed_44"


@register_task(
    "ccc-medium",
    protocol="stream",
    version="1",
    metric="error",
    title="CCC, medium difficulty, 100,000 frames",
    budget={"currency": "passes", "limit": 10500000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("ccc", "imagenet", "imagenet-5k-ids", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm"),
    bundle="ccc-medium",
    preset="imagenet",
)
class CCCMedium(StreamTask):
    """The first 100,000 frames in batches of 64. Public array `images`: uint8 (N, 3, 224, 224), as shown."""

    n_classes: ClassVar[int] = 1000
    clean_error: ClassVar[tuple[float, float]] = RESNET50.clean_error
    frames: ClassVar[int] = 100_000
    per_domain: ClassVar[int] = 10_000

    def build(self, data: Data) -> Bundle:
        folder = data.file("ccc", STREAM)
        validation = data.file("imagenet", "val")
        clean = listed(validation, clean_names(data), imagenet_classes(validation))
        pixels = np.empty((len(clean.paths), 3, SIDE, SIDE), np.uint8)
        decode_all(clean.paths, pixels, SIDE, RESIZE)
        model = RESNET50.load(data)
        self.tell("measuring the source model")
        clean_error = RESNET50.gate(model, labelled_batches(pixels, clean.labels), data)
        labels: list[int] = []

        def fill(images: Array) -> None:
            for where, content, label in itertools.islice(samples(folder), self.frames):
                images[len(labels)] = decode(content, where, SIDE)
                labels.append(label)
                if len(labels) % 1000 == 0:
                    self.tell(f"frame {len(labels):,} of {self.frames:,}")
            if len(labels) < self.frames:
                raise DataMissing(f"{folder} holds {len(labels):,} frames of {self.frames:,}: add the next shards.")

        images = written((self.frames, 3, SIDE, SIDE), fill)
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

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        order = np.arange(self.frames)
        domains = order // self.per_domain
        names = tuple(f"from frame {start:,}" for start in range(0, self.frames, self.per_domain))
        return Stream(order, even_cuts(self.frames, BATCH_SIZE), domains, names)
