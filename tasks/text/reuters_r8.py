"""Reuters-21578, R8, with five labels a class: eight topics of very different sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...suite.registry import register_task
from .active import ActiveTexts
from .few_labels import FewLabels, Labelled
from .rows import read_delimited

if TYPE_CHECKING:
    from ...suite.data import Data

HEADER_LINES = 3


@register_task(
    "reuters-r8-few",
    protocol="adaptation",
    version="2",
    metric="accuracy",
    title="Reuters R8, five labels a class, frozen sentence vectors",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 300.0},
    data=("reuters-r8", "minilm"),
    grants=("real-inputs", "strong-augmentation", "test-inputs", "oracle-labels"),
    tags=("frozen-encoder",),
    variants={
        "reuters-r8-few-2": {
            "title": "Reuters R8, two labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 2},
        },
        "reuters-r8-few-10": {
            "title": "Reuters R8, ten labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 10},
        },
    },
)
class ReutersR8Few(FewLabels):
    """A head on MiniLM's sentence vectors of the first 128 tokens; the encoder is frozen and its pass is charged.

    News in lower-case letters. Half of the test texts are of the class `earn`, less than a fiftieth of `grain`: equal
    numbers of labels tell nothing of that, and a method that assumes equal classes loses.
    """

    name: ClassVar[str] = "reuters-r8-few"
    classes: ClassVar[tuple[str, ...]] = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
    n_classes: ClassVar[int] = len(classes)
    length: ClassVar[int] = 128

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        def part(name: str) -> list[Labelled]:
            rows = read_delimited(data.file("reuters-r8", name), ("class", "text"), skip=HEADER_LINES)
            return [(row.one_of("class", self.classes), row.text("text")) for row in rows]

        return part("train.tab"), part("test.tab")


@register_task(
    "reuters-r8-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="Reuters R8, active learning: 130 labels by breaking ties, frozen sentence vectors",
    budget={"currency": "passes", "limit": 400000, "wall_seconds": 600.0},
    data=("reuters-r8", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder", "active-learning"),
    bundle="reuters-r8-few",
    variants={
        "reuters-r8-active-random": {
            "title": "Reuters R8, active learning: 130 labels at random, frozen sentence vectors",
            "set": {"strategy": "random"},
        },
        "reuters-r8-active-entropy": {
            "title": "Reuters R8, active learning: 130 labels by prediction entropy, frozen sentence vectors",
            "set": {"strategy": "entropy"},
        },
        "reuters-r8-active-contrastive": {
            "title": "Reuters R8, active learning: 130 labels by contrast to neighbours, frozen sentence vectors",
            "set": {"strategy": "contrastive", "query_features": True},
        },
        "reuters-r8-active-225": {
            "title": "Reuters R8, active learning: 225 labels by breaking ties, frozen sentence vectors",
            "set": {"start": 25, "query_size": 20},
        },
    },
)
class ReutersR8Active(ActiveTexts, ReutersR8Few):
    """Texts, model and views of `reuters-r8-few`; rare classes are frequent in the start set and rare in the pool."""
