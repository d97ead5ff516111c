"""Handwritten digits under 15 corruptions: one after the other at severity 5, or all mixed.

One half of scikit-learn's 1,797 digits trains the source model and is granted as source data, the other half is the
base of both streams. The weights are part of the task: trained once by `train_source` and kept beside this file, for
the same training on another kind of processor rounds differently and ends one point of error away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.pretrain import error_rate, load_weights, train_classifier
from ...suite.protocols.stream import Stream, StreamTask
from ...suite.registry import register_task
from ...suite.seeds import rng
from ..augmentations import shift
from ..digits import as_tensor, convolution, read_digits
from .corruptions import NAMES, SEVERITIES, corrupt
from .orders import Domain, continual, mixed
from .posterior import swag_diagonal

if TYPE_CHECKING:
    from ...suite.data import Data

BATCH_SIZE = 64
EPOCHS = 30
SPLIT_SEED = 0
SOURCE_SEED = 0
WEIGHTS = Path(__file__).parent / "weights" / "digits-c.safetensors"
WEIGHTS_SHA256 = "af74f3942b18aaa1731f49c51b3b43bfffbbe8025397a23cf8d70697b2ea2458"


class _DigitsC(StreamTask):
    """What the two tasks share: data, source model, preprocessing.

    Public array `images`: uint8 (corruption x severity x image, 8, 8), the images in an order drawn once.
    """

    n_classes: ClassVar[int] = 10
    clean_error: ClassVar[tuple[float, float]] = (0.005, 0.035)

    def build(self, data: Data) -> Bundle:
        images, labels = read_digits(data)
        source, base = halves(labels)
        model = self.model()
        model.load_state_dict(load_weights(WEIGHTS, WEIGHTS_SHA256))
        model.eval()
        ids = np.arange(len(base))
        corrupted = [corrupt(images[base] / 255.0, ids, name, severity) for name in NAMES for severity in SEVERITIES]
        clean_error = error_rate(model, as_tensor(images[base]), torch.from_numpy(labels[base]))
        return Bundle(
            public={"images": np.concatenate(corrupted)},
            private={"labels": np.tile(labels[base], len(NAMES) * len(SEVERITIES))},
            model=model.state_dict(),
            facts={
                "classes": [str(digit) for digit in range(self.n_classes)],
                "clean_error": clean_error,
                "source_images": len(source),
                "base_images": len(base),
                "corruptions": list(NAMES),
            },
        )

    def model(self) -> nn.Module:
        """Three convolutions with batch norm, 24,058 parameters."""
        return nn.Sequential(
            *convolution(1, 16), *convolution(16, 32), nn.MaxPool2d(2), *convolution(32, 64),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, self.n_classes),
        )  # fmt: skip

    def build_source(self, data: Data) -> Bundle:
        images, labels = read_digits(data)
        source, _ = halves(labels)
        return Bundle({"source_images": images[source], "source_labels": labels[source]}, {})

    def build_posterior(self, bundle: BundleFolder, source: BundleFolder) -> Bundle:
        model = self.model()
        model.load_state_dict(bundle.model())
        public = source.public()
        pixels, labels = public["source_images"][:, None], public["source_labels"]
        mean, variance = swag_diagonal(model, pixels, labels, seed=SOURCE_SEED, epochs=10, batch_size=64, augment=shift)
        return Bundle({"posterior_mean": mean, "posterior_variance": variance}, {})

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_tensor(public["images"][indices])

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_tensor(public["source_images"][indices])


@register_task(
    "digits-c-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="Digits under 15 corruptions, one after the other, severity 5",
    budget={"currency": "passes", "limit": 675750, "wall_seconds": 120.0},
    data=("digits",),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "digits-c", "data": ("digits",)},
    bundle="digits-c",
)
class DigitsCContinual(_DigitsC):
    """The corruptions in the order of `corruptions.NAMES` at severity 5, each over all 901 images, shuffled.

    13,515 images in batches of 64. A batch may hold the end of one corruption and the start of the next: a short batch
    would tell the boundary. The budget is 50 passes an image; source and norm take 1, Tent 3, CoTTA with 32 views 37.
    """

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        n = bundle.facts["base_images"]
        severest = np.full(n, len(SEVERITIES) - 1)
        return continual(_domains(n, [severest] * len(NAMES)), rng(seed, "digits-c-continual"), BATCH_SIZE)


@register_task(
    "digits-c-mixed",
    protocol="stream",
    version="2",
    metric="error",
    title="Digits under 15 corruptions in five severities, all mixed",
    budget={"currency": "passes", "limit": 675750, "wall_seconds": 120.0},
    data=("digits",),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "digits-c", "data": ("digits",)},
    bundle="digits-c",
)
class DigitsCMixed(_DigitsC):
    """Every image under every corruption once, the five severities dealt out evenly, all shuffled by the seed.

    Image i meets corruption c at severity 1 + (i + c) mod 5. 13,515 images in batches of 64, domains are corruptions;
    the budget is that of `digits-c-continual`.
    """

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        n = bundle.facts["base_images"]
        levels = [(np.arange(n) + corruption) % len(SEVERITIES) for corruption in range(len(NAMES))]
        return mixed(_domains(n, levels), rng(seed, "digits-c-mixed"), BATCH_SIZE)


def train_source(images: Array, labels: Array) -> nn.Module:
    """The training that made the kept weights, on the source half of all digits (N, 8, 8) and their classes (N,)."""
    source, _ = halves(labels)
    return train_classifier(
        _DigitsC().model,
        as_tensor(images[source]),
        torch.from_numpy(labels[source]),
        seed=SOURCE_SEED,
        epochs=EPOCHS,
        augment=shift,
    )


def _domains(n: int, levels: Sequence[Array]) -> list[Domain]:
    """A domain a corruption: its images 0 to n - 1, image i at the severity `levels[corruption][i]` (from 0)."""
    return [
        Domain(name, (corruption * len(SEVERITIES) + levels[corruption]) * n + np.arange(n))
        for corruption, name in enumerate(NAMES)
    ]


def halves(labels: Array) -> tuple[Array, Array]:
    """Indices of the source half and of the base of the streams: equal shares of every class, each half shuffled."""
    draw = rng(SPLIT_SEED, "digits-c", "halves")
    source: list[Array] = []
    base: list[Array] = []
    for digit in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == digit))
        source.append(members[: len(members) // 2])
        base.append(members[len(members) // 2 :])
    return draw.permutation(np.concatenate(source)), draw.permutation(np.concatenate(base))
