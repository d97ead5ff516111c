"""What the text tasks with active learning share: the start set, and the query strategy by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from ...suite.bundle import Array, BundleFolder
from ...suite.protocols.active import ActiveTask, Shown
from ...suite.protocols.adaptation import Split
from ...suite.seeds import rng
from ..splits import few_labels
from .queries import STRATEGIES


class ActiveTexts(ActiveTask):
    """30 labels to begin with, then ten in each of ten rounds: the label budget of 130 of Schroeder and Heyer (2024,
    arXiv:2406.09206), whose released configuration has these numbers and a start set with equal classes.

    Five validation texts a class are held out; whoever asks for their score pays for them. The names of the classes'
    tasks are those of the same data with few labels, with which they share the bundle.
    """

    name: ClassVar[str]
    strategy: ClassVar[str] = "breaking-ties"
    start: ClassVar[int] = 30
    validation_per_class: ClassVar[int] = 5

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        labels, n = bundle.private()["labels"], bundle.facts["train_texts"]
        return balanced(labels, n, rng(seed, self.name, "active"), self.start, self.validation_per_class)

    def query(self, shown: Shown, size: int, draw: np.random.Generator) -> Array:
        return STRATEGIES[self.strategy](shown, size, draw)


def balanced(labels: Array, n: int, draw: np.random.Generator, size: int, validation: int) -> Split:
    """`few_labels` with `size` labels over all classes: as many of each, those that are left of drawn classes."""
    classes = np.unique(labels)
    split = few_labels(labels, n, draw, -(-size // len(classes)), validation)
    fewer = draw.permutation(classes)[: -size % len(classes)]
    surplus = [int(np.flatnonzero(split.labels == group)[0]) for group in fewer]
    return replace(
        split,
        labeled=np.delete(split.labeled, surplus),
        labels=np.delete(split.labels, surplus),
        unlabeled=np.sort(np.append(split.unlabeled, split.labeled[surplus])),
    )
