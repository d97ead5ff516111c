"""From MNIST to the digits of scikit-learn: labelled digits of one collection, unlabelled ones of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.protocols.adaptation import AdaptationTask, Recipe, Split
from ...suite.registry import register_task
from ...suite.scoring import Scores, score_classification
from ...suite.seeds import rng
from ..augmentations import rand_augment, shift
from ..digits import as_tensor, convolution, read_digits

if TYPE_CHECKING:
    from ...suite.data import Data

SIDE = 16
LABELED = 10_000
SOURCE_VALIDATION = 1_000
VALIDATION_PER_CLASS = 4
TEST_PER_CLASS = 60
ORDER_SEED = 0
CLASSES = tuple(str(digit) for digit in range(10))


@register_task(
    "mnist-to-digits",
    protocol="adaptation",
    version="1",
    metric="error",
    title="MNIST to digits",
    budget={"currency": "passes", "limit": 600000, "wall_seconds": 900.0},
    data=("mnist", "digits"),
    grants=("norm-layers", "batch-norm", "strong-augmentation", "domains", "oracle-labels"),
)
class MnistToDigits(AdaptationTask):
    """10,000 labelled images of MNIST, 1,157 unlabelled and 600 test images of scikit-learn's digits, 16x16 pixels.

    Source (domain 0): the labelled images are drawn by the seed from MNIST's 60,000 training images; the 1,000 of the
    source validation from 3,000 test images. Target (domain 1): the test images are fixed, 60 a class; four a class are
    drawn by the seed for the validation, and the others are unlabelled.

    Both come to 16x16 pixels without a resampling that could round differently elsewhere: MNIST's 28x28 pixels by the
    means of 2x2 blocks and a border of one black pixel, the digits' 8x8 pixels by doubling with bilinear
    interpolation. MNIST's digits are thin and stand in a margin; the others, themselves counts over 4x4 blocks of
    scanned pixels, are soft and fill the frame: this is the shift.

    `worst_group_error` is the error on the worst of the ten target classes. Weak view: a shift of at most two pixels.
    Strong view: `rand_augment` with shifts of three pixels and holes of five. The learning rate was chosen for
    `erm-augment` among 0.03, 0.1 and 0.3 on the source validation of seeds 100 and 101, which no suite uses (mean
    errors 2.1, 2.0 and 3.0 %).
    """

    n_classes: ClassVar[int] = 10
    recipe: ClassVar[Recipe] = Recipe(lr=0.1, batch_size=32, ema=0.99)

    def build(self, data: Data) -> Bundle:
        """Public array `images`: uint8 (64797, 16, 16): MNIST train and test, then digits in one order, test last."""
        parts, of_part = read_mnist(data)
        digits, target = read_digits(data)
        draw = rng(ORDER_SEED, "mnist-to-digits", "order")
        of_class = [draw.permutation(np.flatnonzero(target == digit)) for digit in range(self.n_classes)]
        test = draw.permutation(np.concatenate([members[:TEST_PER_CLASS] for members in of_class]))
        train = draw.permutation(np.concatenate([members[TEST_PER_CLASS:] for members in of_class]))
        order = np.concatenate([train, test])
        return Bundle(
            public={"images": np.concatenate([*map(halved, parts), doubled(digits[order])])},
            private={"labels": np.concatenate([*of_part, target[order]])},
            facts={
                "classes": list(CLASSES),
                "source_train": len(parts[0]),
                "source_test": len(parts[1]),
                "target_train": len(train),
            },
        )

    def model(self) -> nn.Module:
        """Three convolutions with batch norm, 24,058 parameters."""
        return nn.Sequential(
            *convolution(1, 16), nn.MaxPool2d(2), *convolution(16, 32), nn.MaxPool2d(2), *convolution(32, 64),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, self.n_classes),
        )  # fmt: skip

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        labels, facts = bundle.private()["labels"], bundle.facts
        source, draw = facts["source_train"], rng(seed, "mnist-to-digits")
        labeled = draw.permutation(source)[:LABELED]
        held = source + draw.permutation(facts["source_test"])[:SOURCE_VALIDATION]
        start = source + facts["source_test"]
        pool = np.arange(start, start + facts["target_train"])
        validation = np.concatenate(
            [draw.permutation(pool[labels[pool] == digit])[:VALIDATION_PER_CLASS] for digit in range(self.n_classes)]
        )
        unlabeled = np.setdiff1d(pool, validation)
        return Split(
            labeled=labeled,
            labels=np.asarray(labels[labeled]),
            unlabeled=unlabeled,
            validation=draw.permutation(validation),
            test=np.arange(start + facts["target_train"], len(labels)),
            source_validation=held,
            labeled_domains=np.zeros(len(labeled), np.int64),
            unlabeled_domains=np.ones(len(unlabeled), np.int64),
        )

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_tensor(public["images"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return shift(inputs, generator, pixels=2)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return rand_augment(inputs, generator, hole=5, pixels=3.0)

    def score(self, logits: Array, labels: Array) -> Scores:
        return score_classification(logits, labels, labels, CLASSES)


def read_mnist(data: Data) -> tuple[list[Array], list[Array]]:
    """Training and test part of MNIST: images uint8 (n, 28, 28) and classes (n,), as two lists."""
    with np.load(data.file("mnist", "mnist63k.npz"), allow_pickle=False) as file:
        return [file["x_train"], file["x_test"]], [file["y_train"], file["y_test"]]


def halved(images: Array) -> Array:
    """uint8 (B, 28, 28) to (B, 16, 16): means of 2x2 blocks, rounded half to even, and a border of one black pixel."""
    means = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float64)
    return np.pad(np.rint(means).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))


def doubled(images: Array) -> Array:
    """uint8 (B, 8, 8) to (B, 16, 16): bilinear interpolation with its weights of quarters, rounded half to even."""
    larger = F.interpolate(
        torch.from_numpy(images.astype(np.float64))[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
    return np.asarray(larger[:, 0].round().to(torch.uint8).numpy())
