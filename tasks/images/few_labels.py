"""What semi-supervised tasks on colour images share: views, preprocessing, splits with few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...suite.bundle import Array, BundleFolder
from ...suite.errors import DataMissing
from ...suite.protocols.adaptation import AdaptationTask, Split
from ...suite.seeds import rng
from ..streams.pixels import as_images
from .color_augmentations import strong_view, weak_view


class FewLabels(AdaptationTask):
    """`labels` labelled and `held` validation images, as many of each class; drawn by the seed.

    Public array `images`, uint8 (N, 3, H, W): the training images, which have classes, then `unlabeled_images` of the
    bundle's facts that have none, then the test images. All training images that are not in the validation are in the
    unlabelled pool, the labelled ones too if `labeled_in_pool`.
    """

    n_labels: ClassVar[int]
    """Labelled images in all."""
    n_validation: ClassVar[int]
    """Validation images in all; no more than labelled ones."""
    labeled_in_pool: ClassVar[bool] = True
    flip: ClassVar[bool] = True
    """Whether a mirrored image is one of the same class."""
    draws: ClassVar[str]
    """What the split takes its random numbers by: tasks of one data set that differ in the labels nest."""

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """Classes are drawn in equal shares, so that the labels of a smaller task are among those of a larger one."""
        facts = bundle.facts
        train, other = facts["train_images"], facts.get("unlabeled_images", 0)
        labels = np.asarray(bundle.private()["labels"])
        draw = rng(seed, self.draws)
        of_class = [draw.permutation(np.flatnonzero(labels[:train] == number)) for number in range(self.n_classes)]
        seen, held = (number // self.n_classes for number in (self.n_labels, self.n_validation))
        fewest = min(map(len, of_class))
        if seen + held > fewest:
            number = min(range(self.n_classes), key=lambda number: len(of_class[number]))
            raise DataMissing(
                f"Class {number} has {fewest} training images in {bundle.path}; {seen} labelled and {held} validation "
                "images of each class are asked for. Get the data set's files again, or run a task with fewer labels."
            )
        # Validation images come from the other end, so that more labels do not change them.
        labeled = draw.permutation(np.concatenate([members[:seen] for members in of_class]))
        validation = draw.permutation(np.concatenate([members[len(members) - held :] for members in of_class]))
        taken = validation if self.labeled_in_pool else np.concatenate([validation, labeled])
        return Split(
            labeled=labeled,
            labels=labels[labeled],
            unlabeled=np.setdiff1d(np.arange(train + other), taken),
            validation=validation,
            test=np.arange(train + other, len(labels)),
        )

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return weak_view(inputs, generator, flip=self.flip)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return strong_view(inputs, generator, flip=self.flip)


def check_classes(labels: Array, n_classes: int, where: str, complete: bool = True) -> Array:
    """`labels` (N,) as int64; raises `DataMissing` naming `where` and the row, from 1, of a class outside 0 to K - 1.

    If `complete`, every class must be there.
    """
    labels = np.asarray(labels, np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(wrong):
        raise DataMissing(
            f"{where}, row {wrong[0] + 1} (from 1): class {labels[wrong[0]]}, expected 0 to {n_classes - 1}. "
            "Get the file again."
        )
    absent = np.setdiff1d(np.arange(n_classes), labels)
    if complete and len(absent):
        raise DataMissing(f"{where} has no image of class {absent[0]}. Get the file again.")
    return labels
