"""AG News with five labels a class, on the test items alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...suite.registry import register_task
from ...suite.seeds import rng
from .active import ActiveTexts
from .few_labels import FewLabels, Labelled
from .rows import read_csv

if TYPE_CHECKING:
    from ...suite.data import Data

TEST_PER_CLASS = 500
SPLIT_SEED = 0


@register_task(
    "ag-news-few",
    protocol="adaptation",
    version="2",
    metric="accuracy",
    title="AG News (the 7,600 test items), five labels a class, frozen sentence vectors",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 300.0},
    data=("ag-news", "minilm"),
    grants=("real-inputs", "strong-augmentation", "test-inputs", "oracle-labels"),
    tags=("frozen-encoder",),
    variants={
        "ag-news-few-2": {
            "title": "AG News (the 7,600 test items), two labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 2},
        },
        "ag-news-few-10": {
            "title": "AG News (the 7,600 test items), ten labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 10},
        },
    },
)
class AgNewsFew(FewLabels):
    """A head on MiniLM's sentence vectors of the first 96 tokens; the encoder is frozen and its pass is charged.

    Of the 7,600 published test items, 500 a class are the test texts here, drawn once, and the others the training
    texts. A text is an item's title and description.
    """

    name: ClassVar[str] = "ag-news-few"
    classes: ClassVar[tuple[str, ...]] = ("world", "sports", "business", "science and technology")
    n_classes: ClassVar[int] = len(classes)
    length: ClassVar[int] = 96

    def items(self, data: Data) -> list[Labelled]:
        """The published test items in their order."""
        numbers = [str(1 + number) for number in range(len(self.classes))]
        return [
            (self.classes[int(row.one_of("class", numbers)) - 1], f"{row.text('title')} {row.text('description')}")
            for row in read_csv(data.file("ag-news", "test.csv"), ("class", "title", "description"))
        ]

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        items = self.items(data)
        draw = rng(SPLIT_SEED, self.name, "test")
        members = [np.flatnonzero([label == name for label, _ in items]) for name in self.classes]
        test = {int(index) for part in members for index in draw.permutation(part)[:TEST_PER_CLASS]}
        return [item for index, item in enumerate(items) if index not in test], [items[index] for index in sorted(test)]


@register_task(
    "ag-news-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="AG News, active learning: 130 labels by breaking ties, frozen sentence vectors",
    budget={"currency": "passes", "limit": 400000, "wall_seconds": 600.0},
    data=("ag-news", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder", "active-learning"),
    bundle="ag-news-few",
    variants={
        "ag-news-active-random": {
            "title": "AG News, active learning: 130 labels at random, frozen sentence vectors",
            "set": {"strategy": "random"},
        },
        "ag-news-active-entropy": {
            "title": "AG News, active learning: 130 labels by prediction entropy, frozen sentence vectors",
            "set": {"strategy": "entropy"},
        },
        "ag-news-active-contrastive": {
            "title": "AG News, active learning: 130 labels by contrast to neighbours, frozen sentence vectors",
            "set": {"strategy": "contrastive", "query_features": True},
        },
        "ag-news-active-225": {
            "title": "AG News, active learning: 225 labels by breaking ties, frozen sentence vectors",
            "set": {"start": 25, "query_size": 20},
        },
    },
)
class AgNewsActive(ActiveTexts, AgNewsFew):
    """Texts, model and views of `ag-news-few`."""
