"""Registered miniatures of text tasks, for runs by the real engine: what they read lies beside `sets.toml`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from selfbench.suite.bundle import Bundle
from selfbench.suite.data import Data
from selfbench.suite.registry import register_task
from selfbench.tasks.text.active_sets import Dbpedia140kActive, ImdbActive
from selfbench.tasks.text.ner import CrossLingualNer
from selfbench.tasks.text.qa import MlqaGeneralised


def described(data: Data) -> Data:
    """The same folder, described without the digests of the real files."""
    return Data(data.root, data.root / "sets.toml")


@register_task(
    "small-imdb-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="IMDB with active learning in small",
    budget={"currency": "passes", "limit": 4000, "wall_seconds": 120, "memory_mb": 4096},
    data=("imdb",),
    grants=("strong-augmentation",),
    tags=("frozen-encoder", "active-learning"),
)
class SmallImdbActive(ImdbActive):
    """Two rounds, an encoder of one layer."""

    rounds: ClassVar[int] = 2
    length: ClassVar[int] = 16

    def build(self, data: Data) -> Bundle:
        return super().build(described(data))


@register_task(
    "small-dbpedia-active",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="DBpedia with active learning in small",
    budget={"currency": "passes", "limit": 6000, "wall_seconds": 120, "memory_mb": 4096},
    data=("dbpedia-14",),
    grants=("strong-augmentation",),
    tags=("frozen-encoder", "active-learning"),
)
class SmallDbpediaActive(Dbpedia140kActive):
    """Two rounds, twenty articles a class, an encoder of one layer."""

    rounds: ClassVar[int] = 2
    length: ClassVar[int] = 16
    per_class: ClassVar[int] = 20

    def build(self, data: Data) -> Bundle:
        return super().build(described(data))


@register_task(
    "small-mlqa",
    protocol="adaptation",
    version="1",
    metric="f1_exact_extract",
    title="MLQA in small",
    budget={"currency": "passes", "limit": 1500, "wall_seconds": 120, "memory_mb": 4096},
    data=("bert-base-multilingual-cased",),
    grants=("norm-layers",),
    tags=("question-answering",),
    outputs="spans",
)
class SmallMlqa(MlqaGeneralised):
    """Three languages, an encoder of two layers whose tokens are letters."""

    languages: ClassVar[tuple[str, ...]] = ("en", "es", "zh")
    target_languages: ClassVar[int] = 1
    length: ClassVar[int] = 40
    stride: ClassVar[int] = 12
    question_length: ClassVar[int] = 8
    recipe = dataclasses.replace(MlqaGeneralised.recipe, lr=1e-3)

    def build(self, data: Data) -> Bundle:
        return super().build(described(data))


@register_task(
    "small-ner",
    protocol="adaptation",
    version="1",
    metric="entity_f1",
    title="CoNLL in small",
    budget={"currency": "passes", "limit": 1500, "wall_seconds": 120, "memory_mb": 4096},
    data=("bert-base-multilingual-cased",),
    grants=("norm-layers", "oracle-labels"),
    tags=("token-tagging",),
    outputs="tokens",
)
class SmallNer(CrossLingualNer):
    """Sentences of 24 tokens, an encoder of two layers whose tokens are letters."""

    source: ClassVar[str] = "conll-2002-es"
    target: ClassVar[str] = "conll-2002-nl"
    frozen_layers: ClassVar[int] = 1
    length: ClassVar[int] = 24
    recipe = dataclasses.replace(CrossLingualNer.recipe, lr=5e-3, points=3)

    def build(self, data: Data) -> Bundle:
        return super().build(described(data))
