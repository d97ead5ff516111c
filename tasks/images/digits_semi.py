"""Semi-supervised handwritten digits: four labels a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.protocols.adaptation import AdaptationTask, Recipe, Split
from ...suite.registry import register_task
from ...suite.seeds import rng
from ..augmentations import rand_augment, shift
from ..digits import as_tensor, convolution, read_digits
from ..splits import few_labels

if TYPE_CHECKING:
    from ...suite.data import Data

LABELED_PER_CLASS = 4
VALIDATION_PER_CLASS = 4
TEST_PER_CLASS = 60
ORDER_SEED = 0


@register_task(
    "digits-semi",
    protocol="adaptation",
    version="1",
    metric="error",
    title="Digits, four labels a class",
    budget={"currency": "passes", "limit": 200000, "wall_seconds": 180.0},
    data=("digits",),
    grants=("real-inputs", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "oracle-labels"),
)
class DigitsSemi(AdaptationTask):
    """scikit-learn's 1,797 digits: 40 labelled, 40 validation, 1,117 unlabelled, 600 test images of 8x8 pixels.

    The test images are fixed, 60 a class; labelled and validation images are drawn by the seed, four a class each. Weak
    view: a shift of at most one pixel. Strong view: `rand_augment`, two random operations and a hole. The learning rate
    was chosen for the supervised baseline on the validation images of seeds 100 to 104, which no suite uses.
    """

    n_classes: ClassVar[int] = 10
    recipe: ClassVar[Recipe] = Recipe(lr=0.1, batch_size=16, ema=0.99)

    def build(self, data: Data) -> Bundle:
        """Public array `images`: uint8 (1797, 8, 8), in an order drawn once, the test images last."""
        images, labels = read_digits(data)
        draw = rng(ORDER_SEED, "digits-semi", "order")
        of_class = [draw.permutation(np.flatnonzero(labels == digit)) for digit in range(self.n_classes)]
        test = draw.permutation(np.concatenate([members[:TEST_PER_CLASS] for members in of_class]))
        train = draw.permutation(np.concatenate([members[TEST_PER_CLASS:] for members in of_class]))
        order = np.concatenate([train, test])
        return Bundle(
            public={"images": images[order]},
            private={"labels": labels[order]},
            facts={"classes": [str(digit) for digit in range(self.n_classes)], "train_images": len(train)},
        )

    def model(self) -> nn.Module:
        """Three convolutions with batch norm, 24,058 parameters."""
        return nn.Sequential(
            *convolution(1, 16), nn.MaxPool2d(2), *convolution(16, 32), *convolution(32, 64),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, self.n_classes),
        )  # fmt: skip

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        labels, n = bundle.private()["labels"], bundle.facts["train_images"]
        return few_labels(labels, n, rng(seed, "digits-semi"), LABELED_PER_CLASS, VALIDATION_PER_CLASS)

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_tensor(public["images"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return shift(inputs, generator)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return rand_augment(inputs, generator)
