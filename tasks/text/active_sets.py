"""Active learning on whole text sets of the data hub: IMDB, and a quarter of DBpedia-14's training texts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...suite.bundle import Array
from ...suite.errors import DataMissing
from ...suite.registry import register_task
from .active import ActiveTexts
from .few_labels import FewLabels, Labelled
from .sets import SETS

if TYPE_CHECKING:
    from ...suite.data import Data

SUBSET_SEED = 42
"""That of the authors' script, whose subset `balanced_subset` draws."""


@register_task(
    "imdb-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="IMDB reviews, active learning: 130 labels by breaking ties, frozen sentence vectors",
    budget={"currency": "passes", "limit": 420000, "wall_seconds": 1200.0},
    data=("imdb", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder", "active-learning"),
    bundle="imdb-minilm",
    variants={
        "imdb-active-random": {
            "title": "IMDB reviews, active learning: 130 labels at random, frozen sentence vectors",
            "set": {"strategy": "random"},
        },
        "imdb-active-entropy": {
            "title": "IMDB reviews, active learning: 130 labels by prediction entropy, frozen sentence vectors",
            "set": {"strategy": "entropy"},
        },
        "imdb-active-contrastive": {
            "title": "IMDB reviews, active learning: 130 labels by contrast to neighbours, frozen sentence vectors",
            "set": {"strategy": "contrastive", "query_features": True},
        },
        "imdb-active-225": {
            "title": "IMDB reviews, active learning: 225 labels by breaking ties, frozen sentence vectors",
            "set": {"start": 25, "query_size": 20},
        },
    },
)
class ImdbActive(ActiveTexts, FewLabels):
    """A head on MiniLM's sentence vectors of the first 256 tokens of a review; the encoder is frozen and charged.

    25,000 training and 25,000 test reviews, as published; 256 tokens are those that the encoder's own configuration
    reads, where the paper's fine-tuned ones read 512. Reviews that stand in both parts, or twice, go as everywhere.
    """

    name: ClassVar[str] = "imdb"
    classes: ClassVar[tuple[str, ...]] = SETS["imdb"].classes
    n_classes: ClassVar[int] = len(classes)
    length: ClassVar[int] = 256

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        return SETS["imdb"].read(data.file("imdb", "train"), data.file("imdb", "test"))


@register_task(
    "dbpedia-140k-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="DBpedia-14 (140,000 texts), active learning: 130 labels by breaking ties, frozen sentence vectors",
    budget={"currency": "passes", "limit": 535000, "wall_seconds": 3600.0, "memory_mb": 8192},
    data=("dbpedia-14", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder", "active-learning"),
    bundle="dbpedia-140k-minilm",
    variants={
        "dbpedia-140k-active-random": {
            "title": "DBpedia-14 (140,000 texts), active learning: 130 labels at random, frozen sentence vectors",
            "set": {"strategy": "random"},
        },
        "dbpedia-140k-active-entropy": {
            "title": "DBpedia-14 (140,000 texts), active learning: 130 labels by prediction entropy, frozen sentence "
            "vectors",
            "set": {"strategy": "entropy"},
        },
        "dbpedia-140k-active-contrastive": {
            "title": "DBpedia-14 (140,000 texts), active learning: 130 labels by contrast to neighbours, frozen "
            "sentence vectors",
            "set": {"strategy": "contrastive", "query_features": True},
        },
        "dbpedia-140k-active-225": {
            "title": "DBpedia-14 (140,000 texts), active learning: 225 labels by breaking ties, frozen sentence "
            "vectors",
            "set": {"start": 25, "query_size": 20},
        },
    },
)
class Dbpedia140kActive(ActiveTexts, FewLabels):
    """A head on MiniLM's sentence vectors of the first 128 tokens of an article; the encoder is frozen and charged.

    DBP-140k of Schroeder and Heyer (2024, arXiv:2406.09206), by their released code (commit af074ea): of the 560,000
    training articles 10,000 a class, drawn by its seed out of the hub's rows; all 70,000 test articles; the content of
    an article without its title; 128 tokens. Of the 140,000 those go that repeat another one or stand in the test part.
    """

    name: ClassVar[str] = "dbpedia-140k"
    classes: ClassVar[tuple[str, ...]] = SETS["dbpedia-14"].classes
    n_classes: ClassVar[int] = len(classes)
    length: ClassVar[int] = 128
    per_class: ClassVar[int] = 10000

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        """Raises `DataMissing` where a class has fewer training articles than the subset takes of it."""
        contents = replace(SETS["dbpedia-14"], columns=("content",))
        folder = data.file("dbpedia-14", "train")
        train, test = contents.read(folder, data.file("dbpedia-14", "test"))
        labels = np.array([self.classes.index(label) for label, _ in train])
        counts = np.bincount(labels, minlength=self.n_classes)
        if counts.min() < self.per_class:
            fewest = self.classes[int(counts.argmin())]
            raise DataMissing(
                f"{folder} has {counts.min():,} articles of the class '{fewest}', of which {self.per_class:,} are "
                "drawn. Fetch or place the published files again."
            )
        return [train[index] for index in balanced_subset(labels, self.per_class)], test


def balanced_subset(labels: Array, per_class: int) -> list[int]:
    """Of labels (N,) the indices of `per_class` examples a class, sorted.

    The set that `balanced_sampling` of small-text (2.0.0.dev1) draws under numpy's seed 42, as in the authors' script:
    class by class, without replacement. Which texts these are depends on the order of the rows.
    """
    draw = np.random.RandomState(SUBSET_SEED)
    parts = [draw.choice(np.flatnonzero(labels == group), per_class, replace=False) for group in np.unique(labels)]
    return sorted(np.concatenate(parts).tolist())
