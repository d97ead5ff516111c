"""What tasks share that give a few labels a class of a data set with a training and a test part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.protocols.adaptation import Split
from ...suite.scoring import Scores, score_classification
from ...suite.seeds import rng
from ..splits import few_labels
from .frozen import ZeroHead, encode

if TYPE_CHECKING:
    from ...suite.data import Data

ORDER_SEED = 0
Labelled = tuple[str, str]
"""(class, text)"""


class FewLabels(ZeroHead):
    """Five labelled and five validation texts a class, drawn by the seed; the other training texts are unlabelled.

    The test texts are all that are published. Of training texts those go that stand in the test part too, and those
    that repeat another one or contradict it (`without_repeats`); how many is in the facts of the bundle. The views are
    those of `newsgroups-few`. `worst_group_error` is the error on the worst class.
    """

    labeled_per_class: ClassVar[int] = 5
    validation_per_class: ClassVar[int] = 5

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    length: ClassVar[int]
    """Tokens of a text that the encoder reads, its two marks included."""

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        """The training and the test part."""
        raise NotImplementedError

    def strong_arrays(self, data: Data, texts: Sequence[str]) -> dict[str, Array]:
        """Public arrays of strong views of the training `texts` that were made beforehand; by default there are none.

        Those of `texts[i]` are at the number i of the example.
        """
        return {}

    def texts(self, data: Data) -> tuple[list[Labelled], dict[str, Any]]:
        """The training texts in an order drawn once, then the test texts likewise, and facts about them."""
        train, test = self.read(data)
        kept, removed = without_repeats(train, test)
        draw = rng(ORDER_SEED, self.name, "order")
        chosen = [part[index] for part in (kept, test) for index in draw.permutation(len(part))]
        facts = {"classes": list(self.classes), "train_texts": len(kept), "test_texts": len(test), **removed}
        return chosen, facts

    def build(self, data: Data) -> Bundle:
        """Public arrays: see `encode` and `strong_arrays`; examples in the order of `texts`."""
        chosen, facts = self.texts(data)
        texts = [text for _, text in chosen]
        public, encoded = encode(data, texts, self.length, self.tell, self.encoder)
        return Bundle(
            public=public | self.strong_arrays(data, texts[: facts["train_texts"]]),
            private={"labels": np.array([self.classes.index(label) for label, _ in chosen], dtype=np.int64)},
            facts=facts | encoded,
        )

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        labels, n = bundle.private()["labels"], bundle.facts["train_texts"]
        return few_labels(labels, n, rng(seed, self.name), self.labeled_per_class, self.validation_per_class)

    def score(self, logits: Array, labels: Array) -> Scores:
        return score_classification(logits, labels, labels, self.classes)


def normalised(text: str) -> str:
    """The form in which two texts count as the same: no difference of case or space."""
    return " ".join(text.casefold().split())


def without_repeats(train: Sequence[Labelled], test: Sequence[Labelled]) -> tuple[list[Labelled], dict[str, Any]]:
    """The training texts that are no test text, each once, and how many were taken away for which reason.

    A text that has two classes in the training part is taken away altogether. The test part stays as it is published;
    `test_repeats` counts the test texts that repeat one before them.
    """
    in_test = {normalised(text) for _, text in test}
    classes: dict[str, set[str]] = {}
    for label, text in train:
        classes.setdefault(normalised(text), set()).add(label)
    kept: dict[str, Labelled] = {}
    removed = {"train_in_test": 0, "train_contradicting": 0, "train_repeats": 0}
    for label, text in train:
        form = normalised(text)
        if form in in_test:
            removed["train_in_test"] += 1
        elif len(classes[form]) > 1:
            removed["train_contradicting"] += 1
        elif form in kept:
            removed["train_repeats"] += 1
        else:
            kept[form] = (label, text)
    return list(kept.values()), removed | {"test_repeats": len(test) - len(in_test)}
