"""The track `fine-tuning`: an encoder and its classifier, trained together on tokens that are prepared once.

Never ranked together with the track `frozen-encoder` of the same texts: another track is another task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.places import data_folder
from ...suite.protocols.adaptation import Recipe, Vocabulary
from ...suite.protocols.optimisation import half_cosine
from ...suite.registry import register_task
from .ag_news import AgNewsFew
from .encoders import Tokens, drop_words, language_model, padded, text_model, texts_to_tokens
from .few_labels import FewLabels, Labelled
from .newsgroups import CLASSES, TRAIN_PER_CLASS, choose, read_texts
from .tokenized import Tokenized
from .trec import TrecFew

VIEWS: Mapping[str, tuple[float, float]] = {"words": (0.1, 0.5), "dropout": (0.0, 0.0), "back-translation": (0.0, 0.0)}
"""Shares of the words that are left out of the weak and of the strong view."""


class FineTuned(Tokenized, FewLabels):
    """Texts with a few labels a class, for an encoder that is trained.

    Public arrays: `tokens` (T,), the token ids of all texts end to end, the training texts first, in an order drawn
    once, then the test texts; `offsets` int64 (N + 1,). Of training texts those go that stand in the test part too, and
    those that repeat another one or contradict it; how many is in the facts of the bundle.

    `views` says how texts are changed: "words" leaves out a tenth of them in the weak view and half in the strong one;
    "dropout" changes none, so that views differ by the encoder's own dropout alone, as in SimCSE (Gao et al. 2021,
    arXiv:2104.08821); with "back-translation" (`back_translation.py`) the strong view is a translation of the text and
    back that was made beforehand, and the weak view the text. The classifier begins at zero; the encoder's vectors have
    the length 20, which is to say that the head learns twenty times as fast as it would on vectors of length 1.
    """

    encoder: ClassVar[str] = "minilm"
    pooling: ClassVar[str] = "mean"
    trained_embeddings: ClassVar[bool] = False
    """Whether the word embeddings are trained too; they are half of the weights of MiniLM."""
    views: ClassVar[str] = "words"
    template: ClassVar[str] = ""
    """What stands around a text in the prompt, such as "{0} It was {mask}."; without label words none."""
    words: ClassVar[tuple[str, ...]] = ()
    """The label words of the classes; none where a linear head classifies."""
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw",
        lr=2e-4,
        weight_decay=1e-2,
        batch_size=16,
        ema=0.0,
        points=5,
        schedule=half_cosine(0.1),
        max_norm=1.0,
    )
    cached_passes: ClassVar[float] = 0.0
    lazy: ClassVar[bool] = True
    evaluation_batch: ClassVar[int] = 256

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.marks.size, self.marks.mask, self.marks.special)

    def language_model(self, model: Any) -> nn.Module:
        return language_model(Data(data_folder()), self.tokenizer, model)

    def build(self, data: Data) -> Bundle:
        chosen, facts = self.texts(data)
        texts = [text for _, text in chosen]
        public = texts_to_tokens(Tokens(data, self.encoder), texts, self.length, self.template, self.tell)
        lengths = np.diff(public["offsets"])
        number = {label: at for at, label in enumerate(self.classes)}
        return Bundle(
            public=public | self.strong_arrays(data, texts[: facts["train_texts"]]),
            private={"labels": np.array([number[label] for label, _ in chosen], dtype=np.int64)},
            facts=facts
            | {
                "tokens_per_text": round(float(lengths.mean()), 1),
                "cut_texts": int((lengths >= self.length).sum()),
            },
        )

    def model(self) -> nn.Module:
        return text_model(
            Data(data_folder()), self.tokenizer, self.n_classes, self.pooling, self.words, self.trained_embeddings
        )

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return padded(public["tokens"], public["offsets"], indices, self.length, self.marks.pad)

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return self._view(inputs, generator, VIEWS[self.views][0])

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return self._view(inputs, generator, VIEWS[self.views][1])

    def _view(self, inputs: Tensor, generator: torch.Generator, share: float) -> Tensor:
        return drop_words(inputs, generator, share, self.marks) if share else inputs


@register_task(
    "trec-30-finetune",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="TREC questions, thirty labels a class, MiniLM fine-tuned",
    budget={"currency": "passes", "limit": 24000, "wall_seconds": 3600.0, "memory_mb": 8192},
    data=("trec", "minilm"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    variants={
        "trec-30-finetune-dropout": {
            "title": "TREC questions, thirty labels a class, MiniLM fine-tuned, views by dropout alone",
            "set": {"views": "dropout"},
        },
        "trec-10-finetune": {
            "title": "TREC questions, ten labels a class, MiniLM fine-tuned",
            "set": {"labeled_per_class": 10},
        },
        "trec-20-finetune": {
            "title": "TREC questions, twenty labels a class, MiniLM fine-tuned",
            "set": {"labeled_per_class": 20},
        },
    },
)
class Trec30Finetune(FineTuned, TrecFew):
    """MiniLM (22.6 million parameters) and a linear head on whole questions of TREC; all 500 test questions.

    180 labelled and 30 validation questions; of the other training questions those are unlabelled that are no test
    question, as 11 were, and repeat no other, as 72 did.
    """

    labeled_per_class: ClassVar[int] = 30


@register_task(
    "ag-news-5-finetune",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="AG News (the 7,600 test items), five labels a class, MiniLM fine-tuned",
    budget={"currency": "passes", "limit": 60000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("ag-news", "minilm"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    variants={
        "ag-news-30-finetune": {
            "title": "AG News (the 7,600 test items), thirty labels a class, MiniLM fine-tuned",
            "set": {"labeled_per_class": 30},
        },
    },
)
class AgNews5Finetune(FineTuned, AgNewsFew):
    """MiniLM and a linear head on the first 96 tokens of the news of `ag-news-few`, with its test items and split."""


@register_task(
    "newsgroups-finetune",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="20 Newsgroups, thirty labels a class, MiniLM fine-tuned",
    budget={"currency": "passes", "limit": 60000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("newsgroups", "minilm"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
)
class NewsgroupsFinetune(FineTuned):
    """MiniLM and a linear head on the first 128 tokens of the texts of `newsgroups-few`."""

    name: ClassVar[str] = "newsgroups-few"
    classes: ClassVar[tuple[str, ...]] = CLASSES
    n_classes: ClassVar[int] = len(CLASSES)
    length: ClassVar[int] = 128
    labeled_per_class: ClassVar[int] = 30

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        train = read_texts(data.file("newsgroups", "train.tab"))
        test = read_texts(data.file("newsgroups", "test.tab"))
        chosen = choose(train, test, self.classes)
        n = TRAIN_PER_CLASS * len(self.classes)
        return chosen[:n], chosen[n:]
