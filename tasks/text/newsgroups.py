"""20 Newsgroups with a handful of labels a class: on frozen sentence vectors, and with the encoder fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.errors import DataMissing
from ...suite.protocols.adaptation import AdaptationTask, Recipe, Split
from ...suite.registry import register_task
from ...suite.seeds import rng
from ..splits import few_labels
from .active import ActiveTexts
from .few_labels import Labelled
from .frozen import FrozenVectors, ZeroHead, encode
from .minilm import WIDTH, SentenceClassifier, drop_words, load_encoder
from .rows import REMEDY, read_delimited

if TYPE_CHECKING:
    from ...suite.data import Data

CLASSES = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware", "comp.windows.x", "misc.forsale", "rec.autos",
    "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey", "sci.crypt",
    "sci.electronics", "sci.med", "sci.space", "soc.religion.christian",
    "talk.politics.guns", "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip
TRAIN_PER_CLASS = 250
TEST_PER_CLASS = 100
LABELED_PER_CLASS = 5
VALIDATION_PER_CLASS = 5
LENGTH = 128
HEADER_LINES = 3
SUBSET_SEED = 0


class _Newsgroups(AdaptationTask):
    """What the two tasks share: the texts and their split.

    Public arrays: `ids` uint16 (7000, 128), the token ids of 5,000 training texts and then 2,000 test texts, each part
    in an order drawn once; `vectors` float32 (7000, 384), their sentence vectors.
    """

    n_classes: ClassVar[int] = len(CLASSES)

    def build(self, data: Data) -> Bundle:
        train = read_texts(data.file("newsgroups", "train.tab"))
        test = read_texts(data.file("newsgroups", "test.tab"))
        chosen = choose(train, test, CLASSES)
        public, facts = encode(data, [text for _, text in chosen], LENGTH, self.tell)
        return Bundle(
            public=public,
            private={"labels": np.array([CLASSES.index(label) for label, _ in chosen], dtype=np.int64)},
            facts={
                "classes": list(CLASSES),
                "train_texts": TRAIN_PER_CLASS * len(CLASSES),
                "test_texts": TEST_PER_CLASS * len(CLASSES),
                **facts,
            },
        )

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """Five labelled and five validation texts a class, drawn by the seed; the other training texts unlabelled."""
        labels, n = bundle.private()["labels"], bundle.facts["train_texts"]
        return few_labels(labels, n, rng(seed, "newsgroups-few"), LABELED_PER_CLASS, VALIDATION_PER_CLASS)


@register_task(
    "newsgroups-few",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="20 Newsgroups, five labels a class, frozen sentence vectors",
    budget={"currency": "passes", "limit": 400000, "wall_seconds": 300.0},
    data=("newsgroups", "minilm"),
    grants=("real-inputs", "strong-augmentation", "test-inputs", "oracle-labels"),
    tags=("frozen-encoder",),
    bundle="newsgroups-few",
)
class NewsgroupsFew(FrozenVectors, _Newsgroups):
    """A head on MiniLM's sentence vectors of the first 128 tokens; the encoder is frozen and its pass is charged.

    100 labelled, 100 validation, 4,800 unlabelled and 2,000 test texts. The views are those of `FrozenVectors`.
    """


@register_task(
    "newsgroups-few-finetune",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="20 Newsgroups, five labels a class, MiniLM fine-tuned",
    budget={"currency": "passes", "limit": 60000, "wall_seconds": 3600.0, "memory_mb": 8192},
    data=("newsgroups", "minilm"),
    grants=("norm-layers", "strong-augmentation", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    bundle="newsgroups-few",
)
class NewsgroupsFewFinetune(_Newsgroups):
    """MiniLM (22.6 million parameters) and a linear head, trained together on the first 128 tokens.

    Texts and split are those of `newsgroups-few`. Weak view: a tenth of the words is left out; strong view: half.
    """

    recipe: ClassVar[Recipe] = Recipe(optimizer="adamw", lr=1e-4, weight_decay=1e-2, batch_size=16, ema=0.0, points=5)

    def model(self) -> nn.Module:
        from ...suite.data import Data
        from ...suite.places import data_folder

        return SentenceClassifier(load_encoder(Data(data_folder())), WIDTH, self.n_classes, scale=20.0)

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return torch.from_numpy(public["ids"][indices].astype(np.int64))

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return drop_words(inputs, generator, share=0.1)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return drop_words(inputs, generator, share=0.5)


@register_task(
    "newsgroups-few-2",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="20 Newsgroups, two labels a class, frozen sentence vectors",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 300.0},
    data=("newsgroups", "minilm"),
    grants=("real-inputs", "strong-augmentation", "test-inputs", "oracle-labels"),
    tags=("frozen-encoder",),
    bundle="newsgroups-few",
    variants={
        "newsgroups-few-5": {
            "title": "20 Newsgroups, five labels a class, frozen sentence vectors, a head that begins at zero",
            "set": {"labeled_per_class": 5},
        },
        "newsgroups-few-10": {
            "title": "20 Newsgroups, ten labels a class, frozen sentence vectors",
            "set": {"labeled_per_class": 10},
        },
    },
)
class NewsgroupsFew2(ZeroHead, _Newsgroups):
    """The texts of `newsgroups-few` with other numbers of labels, and the head that begins at zero."""

    labeled_per_class: ClassVar[int] = 2

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        labels, n = bundle.private()["labels"], bundle.facts["train_texts"]
        return few_labels(labels, n, rng(seed, "newsgroups-few"), self.labeled_per_class, VALIDATION_PER_CLASS)


@register_task(
    "newsgroups-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="20 Newsgroups, active learning: 130 labels by breaking ties, frozen sentence vectors",
    budget={"currency": "passes", "limit": 400000, "wall_seconds": 600.0},
    data=("newsgroups", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder", "active-learning"),
    bundle="newsgroups-few",
    variants={
        "newsgroups-active-random": {
            "title": "20 Newsgroups, active learning: 130 labels at random, frozen sentence vectors",
            "set": {"strategy": "random"},
        },
        "newsgroups-active-entropy": {
            "title": "20 Newsgroups, active learning: 130 labels by prediction entropy, frozen sentence vectors",
            "set": {"strategy": "entropy"},
        },
        "newsgroups-active-contrastive": {
            "title": "20 Newsgroups, active learning: 130 labels by contrast to neighbours, frozen sentence vectors",
            "set": {"strategy": "contrastive", "query_features": True},
        },
        "newsgroups-active-225": {
            "title": "20 Newsgroups, active learning: 225 labels by breaking ties, frozen sentence vectors",
            "set": {"start": 25, "query_size": 20},
        },
    },
)
class NewsgroupsActive(ActiveTexts, ZeroHead, _Newsgroups):
    """The texts of `newsgroups-few`, with the head that begins at zero. Ten of the classes begin with two labels, ten
    with one.
    """

    name: ClassVar[str] = "newsgroups-few"


def read_texts(path: Path) -> list[Labelled]:
    """(class, text) of every line of a tab file with three header lines (names, types, roles); texts as they stand.

    Raises `DataMissing` naming file and row for a line without a tab, an unknown class, an empty text, a line that is
    too long, or another encoding than utf-8.
    """
    rows = read_delimited(path, ("class", "text"), skip=HEADER_LINES)
    return [(row.one_of("class", CLASSES), row.cells["text"]) for row in rows if row.text("text")]


def choose(train: Sequence[Labelled], test: Sequence[Labelled], classes: Sequence[str]) -> list[Labelled]:
    """The fixed subset: so many texts a class of each part, no text twice, first the training part.

    A text that occurs twice anywhere, under one class or two, is left out: posts to several groups would stand on both
    sides of the split. Raises `DataMissing` where fewer texts of a class are left than are taken.
    """
    counts: dict[str, int] = {}
    for _, text in (*train, *test):
        counts[text] = counts.get(text, 0) + 1
    draw = rng(SUBSET_SEED, "newsgroups-few", "subset")
    chosen: list[Labelled] = []
    for name, part, per_class in (("training", train, TRAIN_PER_CLASS), ("test", test, TEST_PER_CLASS)):
        taken: list[Labelled] = []
        for group in classes:
            members = [pair for pair in part if pair[0] == group and counts[pair[1]] == 1]
            if len(members) < per_class:
                raise DataMissing(
                    f"20 Newsgroups: of the {name} part {len(members)} texts of '{group}' are left that occur once, "
                    f"{per_class} are needed. {REMEDY}"
                )
            taken += [members[index] for index in draw.permutation(len(members))[:per_class]]
        chosen += [taken[index] for index in draw.permutation(len(taken))]
    return chosen
