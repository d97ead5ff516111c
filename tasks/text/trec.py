"""TREC: what a question asks for, with five labels a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...suite.registry import register_task
from .active import ActiveTexts
from .few_labels import FewLabels, Labelled
from .rows import read_delimited

if TYPE_CHECKING:
    from ...suite.data import Data


@register_task(
    "trec-few",
    protocol="adaptation",
    version="2",
    metric="accuracy",
    title="TREC questions, five labels a class, frozen sentence vectors",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 300.0},
    data=("trec", "minilm"),
    grants=("real-inputs", "strong-augmentation", "test-inputs", "oracle-labels"),
    tags=("frozen-encoder",),
    variants={
        "trec-few-2": {
            "title": "TREC questions, two labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 2},
        },
        "trec-few-10": {
            "title": "TREC questions, ten labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 10},
        },
    },
)
class TrecFew(FewLabels):
    """A head on MiniLM's sentence vectors of whole questions; the encoder is frozen and its pass is charged.

    The classes are about the form of the answer, not about the topic, which is what the vectors are trained to tell:
    neighbours often differ in class.
    """

    name: ClassVar[str] = "trec-few"
    classes: ClassVar[tuple[str, ...]] = ("description", "entity", "abbreviation", "human", "location", "number")
    n_classes: ClassVar[int] = len(classes)
    length: ClassVar[int] = 64

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        numbers = [str(number) for number in range(len(self.classes))]

        def part(name: str) -> list[Labelled]:
            rows = read_delimited(data.file("trec", name), ("class", "question"), delimiter=" ", encoding="latin-1")
            return [(self.classes[int(row.one_of("class", numbers))], row.text("question")) for row in rows]

        return part("train.txt"), part("test.txt")


@register_task(
    "trec-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="TREC questions, active learning: 130 labels by breaking ties, frozen sentence vectors",
    budget={"currency": "passes", "limit": 400000, "wall_seconds": 600.0},
    data=("trec", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder", "active-learning"),
    bundle="trec-few",
    variants={
        "trec-active-random": {
            "title": "TREC questions, active learning: 130 labels at random, frozen sentence vectors",
            "set": {"strategy": "random"},
        },
        "trec-active-entropy": {
            "title": "TREC questions, active learning: 130 labels by prediction entropy, frozen sentence vectors",
            "set": {"strategy": "entropy"},
        },
        "trec-active-contrastive": {
            "title": "TREC questions, active learning: 130 labels by contrast to neighbours, frozen sentence vectors",
            "set": {"strategy": "contrastive", "query_features": True},
        },
        "trec-active-225": {
            "title": "TREC questions, active learning: 225 labels by breaking ties, frozen sentence vectors",
            "set": {"start": 25, "query_size": 20},
        },
    },
)
class TrecActive(ActiveTexts, TrecFew):
    """Questions, model and views of `trec-few`."""
