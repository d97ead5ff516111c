"""Views by back-translation: texts that were translated and back beforehand, as strong views of themselves.

The weak view is the text as it is, the strong one a translation, drawn anew for each batch where there are several
(Xie et al. 2020, arXiv:1904.12848; USB, Wang et al. 2022, arXiv:2208.07204). Nothing is translated here, and what a
translator computes is not counted. Two layouts are read: the files of USB, which hold texts, classes and translations,
and a table with the translations alone, beside the texts of a task that there is anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...suite.bundle import Array
from ...suite.data import Data
from ...suite.errors import DataMissing
from ...suite.registry import register_task
from .ag_news import AgNewsFew
from .encoders import Tokens, padded, texts_to_tokens
from .few_labels import FewLabels, Labelled, normalised
from .finetune import AgNews5Finetune, FineTuned, Trec30Finetune
from .frozen import encode
from .rows import REMEDY, read_json, row_error
from .sets import SETS, UsbTexts
from .tables import read_folder
from .trec import TrecFew


class Translated(NamedTuple):
    """A text with its class and its translations."""

    label: str
    text: str
    versions: tuple[str, ...]


def columns(versions: int) -> tuple[str, ...]:
    """What the translations are called: aug_0, aug_1, ..., as in the files of USB."""
    return tuple(f"aug_{number}" for number in range(versions))


def read_usb(path: Path, classes: Sequence[str], versions: int) -> Iterator[Translated]:
    """The entries of a file of USB: {"0": {"ori": text, "aug_0": ..., "aug_1": ..., "label": "0"}, "1": ...}.

    `classes` are in the order of the numbers in `label`. With `versions` 0, as for a test part, translations are not
    asked for. Raises `DataMissing` naming file and entry, counted from 1, where a text or translation is missing or
    empty, or a class unknown.
    """
    whole = read_json(path)
    if not isinstance(whole, dict) or not whole:
        raise DataMissing(f"{path} holds no entries by their names. {REMEDY}")
    for number, (name, item) in enumerate(whole.items(), 1):
        if not isinstance(item, dict):
            raise row_error(path, number, f"entry '{name}' is no JSON object")
        cells = []
        for key in ("ori", *columns(versions)):
            cell = item.get(key)
            if not isinstance(cell, str) or not cell.strip():
                raise row_error(path, number, f"'{key}' of entry '{name}' is {str(cell)[:80]!r}, expected a text")
            cells.append(cell.strip())
        label = str(item.get("label"))
        if label not in map(str, range(len(classes))):
            raise row_error(path, number, f"'label' of '{name}' is {label[:80]!r}, expected 0 to {len(classes) - 1}")
        yield Translated(classes[int(label)], cells[0], tuple(cells[1:]))


def read_aligned(folder: Path, texts: Sequence[str], versions: int) -> dict[str, tuple[str, ...]]:
    """The translations of `texts` in a table (csv, jsonl, parquet) with a row for each of them, in their order.

    Columns: `id`, the number of the text, from 1; `text`, the text itself, which shows that rows and texts belong
    together; `aug_0`, `aug_1`, ..., its translations. Raises `DataMissing` naming file and row where they do not, where
    a row is missing or too many, or a translation is empty.
    """
    found: dict[str, tuple[str, ...]] = {}
    number = 0
    for number, row in enumerate(read_folder(folder, ("id", "text", *columns(versions))), 1):
        if number > len(texts):
            raise row.error(f"it is one too many: there are {len(texts)} texts")
        text = texts[number - 1]
        if row.cells["id"].strip() != str(number):
            raise row.error(
                f"'id' is {row.cells['id'][:80]!r}, expected {number}: rows stand in the order of the texts"
            )
        if normalised(row.text("text")) != normalised(text):
            raise row.error(f"'text' is {row.text('text')[:80]!r}, but text {number} is {text[:80]!r}")
        found.setdefault(text, tuple(row.text(column) for column in columns(versions)))
    if number < len(texts):
        raise DataMissing(
            f"{folder} ends after row {number}, but there are {len(texts)} texts: {texts[number][:80]!r} has no "
            f"translation. {REMEDY}"
        )
    return found


def one_of(versions: Tensor, generator: torch.Generator) -> Tensor:
    """One of the versions (B, A, ...) of each example, all with the same chance: (B, ...)."""
    drawn = torch.randint(versions.shape[1], versions.shape[:1], generator=generator, device=versions.device)
    return versions[torch.arange(len(versions), device=versions.device), drawn]


class BackTranslated(FewLabels):
    """A task whose strong view is one of `versions` translations of the text, and whose weak view is the text."""

    views: ClassVar[str] = "back-translation"
    versions: ClassVar[int] = 1
    """Translations of each training text; the number is part of the task's identity."""

    def translations(self, data: Data) -> Mapping[str, tuple[str, ...]]:
        """The translations of each training text."""
        raise NotImplementedError

    def by_version(self, data: Data, texts: Sequence[str]) -> list[list[str]]:
        """The translations of `texts`, version by version."""
        found = self.translations(data)
        return [[found[text][version] for text in texts] for version in range(self.versions)]

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return one_of(inputs, generator)


class TranslatedTokens(BackTranslated, FineTuned):
    """Public arrays besides those of `FineTuned`, for the N training texts and A versions:

    `translated_tokens` (T,), token ids end to end; `translated_offsets` int64 (A, N + 1), where each begins.
    """

    def strong_arrays(self, data: Data, texts: Sequence[str]) -> dict[str, Array]:
        tokens, parts, offsets, begin = Tokens(data, self.encoder), [], [], 0
        for version in self.by_version(data, texts):
            made = texts_to_tokens(tokens, version, self.length, self.template, self.tell)
            parts.append(made["tokens"])
            offsets.append(begin + made["offsets"])
            begin += len(made["tokens"])
        return {"translated_tokens": np.concatenate(parts), "translated_offsets": np.stack(offsets)}

    def strong_inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        tokens, offsets = public["translated_tokens"], public["translated_offsets"]
        return torch.stack([padded(tokens, of, indices, self.length, self.marks.pad) for of in offsets], dim=1)


class TranslatedVectors(BackTranslated):
    """Besides the public arrays of `FewLabels`, `translated_vectors` float32 (A, N, 384): those of the translations.

    The passes of the frozen encoder over the translations are charged, too, to every method.
    """

    cached_passes: ClassVar[float] = 2.0

    def strong_arrays(self, data: Data, texts: Sequence[str]) -> dict[str, Array]:
        versions = self.by_version(data, texts)
        flat = [text for version in versions for text in version]
        public, _ = encode(data, flat, self.length, self.tell, self.encoder)
        return {"translated_vectors": public["vectors"].reshape(len(versions), len(texts), -1)}

    def strong_inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return torch.from_numpy(np.array(public["translated_vectors"][:, indices])).transpose(0, 1)


class _TrecTranslations(BackTranslated, TrecFew):
    def translations(self, data: Data) -> Mapping[str, tuple[str, ...]]:
        texts = [text for _, text in self.read(data)[0]]
        return read_aligned(data.file("trec-back-translation", "back-translation"), texts, self.versions)


class _AgNewsTranslations(BackTranslated, AgNewsFew):
    def translations(self, data: Data) -> Mapping[str, tuple[str, ...]]:
        texts = [text for _, text in self.items(data)]
        return read_aligned(data.file("ag-news-back-translation", "back-translation"), texts, self.versions)


@register_task(
    "trec-few-back-translation",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="TREC questions, five labels a class, frozen sentence vectors, views by back-translation",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 300.0},
    data=("trec", "trec-back-translation", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder",),
)
class TrecFewBackTranslation(_TrecTranslations, TranslatedVectors):
    """Questions, split and model of `trec-few`; the strong view of a question is its translation's vector.

    The question's own vector is the weak view.
    """


@register_task(
    "ag-news-few-back-translation",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="AG News (the 7,600 test items), five labels a class, frozen sentence vectors, views by back-translation",
    budget={"currency": "passes", "limit": 100000, "wall_seconds": 300.0},
    data=("ag-news", "ag-news-back-translation", "minilm"),
    grants=("real-inputs", "strong-augmentation", "oracle-labels"),
    tags=("frozen-encoder",),
)
class AgNewsFewBackTranslation(_AgNewsTranslations, TranslatedVectors):
    """News, split and model of `ag-news-few`; the strong view of a text is its translation's vector."""


@register_task(
    "trec-30-finetune-back-translation",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="TREC questions, thirty labels a class, MiniLM fine-tuned, views by back-translation",
    budget={"currency": "passes", "limit": 24000, "wall_seconds": 3600.0, "memory_mb": 8192},
    data=("trec", "trec-back-translation", "minilm"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    variants={
        "trec-10-finetune-back-translation": {
            "title": "TREC questions, ten labels a class, MiniLM fine-tuned, views by back-translation",
            "set": {"labeled_per_class": 10},
        },
        "trec-20-finetune-back-translation": {
            "title": "TREC questions, twenty labels a class, MiniLM fine-tuned, views by back-translation",
            "set": {"labeled_per_class": 20},
        },
    },
)
class TrecBackTranslation(_TrecTranslations, TranslatedTokens, Trec30Finetune):
    """`trec-30-finetune` with a translation of the question as the strong view."""


@register_task(
    "ag-news-5-finetune-back-translation",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="AG News (the 7,600 test items), five labels a class, MiniLM fine-tuned, views by back-translation",
    budget={"currency": "passes", "limit": 60000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("ag-news", "ag-news-back-translation", "minilm"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    variants={
        "ag-news-30-finetune-back-translation": {
            "title": "AG News (the 7,600 test items), thirty labels a class, MiniLM fine-tuned, views by "
            "back-translation",
            "set": {"labeled_per_class": 30},
        },
    },
)
class AgNewsBackTranslation(_AgNewsTranslations, TranslatedTokens, AgNews5Finetune):
    """`ag-news-5-finetune` with a translation of the text as the strong view."""


@register_task(
    "usb-imdb-10-back-translation",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="USB's IMDB reviews, ten labels a class, BERT fine-tuned, views by back-translation",
    budget={"currency": "passes", "limit": 3700000, "wall_seconds": 172800.0},
    data=("usb-imdb", "bert-base-uncased"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    bundle="usb-imdb-bert-base-uncased",
    preset="usb",
    variants={
        "usb-imdb-50-back-translation": {
            "title": "USB's IMDB reviews, fifty labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-imdb", "bert-base-uncased"),
            "bundle": "usb-imdb-bert-base-uncased",
            "set": {"source": "imdb", "labeled_per_class": 50},
        },
        "usb-ag-news-10-back-translation": {
            "title": "USB's AG News, ten labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-ag-news", "bert-base-uncased"),
            "bundle": "usb-ag-news-bert-base-uncased",
            "set": {"source": "ag-news-full", "labeled_per_class": 10},
        },
        "usb-ag-news-50-back-translation": {
            "title": "USB's AG News, fifty labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-ag-news", "bert-base-uncased"),
            "bundle": "usb-ag-news-bert-base-uncased",
            "set": {"source": "ag-news-full", "labeled_per_class": 50},
        },
        "usb-yahoo-answers-50-back-translation": {
            "title": "USB's Yahoo Answers, fifty labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-yahoo-answers", "bert-base-uncased"),
            "bundle": "usb-yahoo-answers-bert-base-uncased",
            "set": {"source": "yahoo-answers", "labeled_per_class": 50},
        },
        "usb-yahoo-answers-200-back-translation": {
            "title": "USB's Yahoo Answers, two hundred labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-yahoo-answers", "bert-base-uncased"),
            "bundle": "usb-yahoo-answers-bert-base-uncased",
            "set": {"source": "yahoo-answers", "labeled_per_class": 200},
        },
        "usb-yelp-5-50-back-translation": {
            "title": "USB's Yelp reviews, fifty labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-yelp-5", "bert-base-uncased"),
            "bundle": "usb-yelp-5-bert-base-uncased",
            "set": {"source": "yelp-5", "labeled_per_class": 50},
        },
        "usb-yelp-5-200-back-translation": {
            "title": "USB's Yelp reviews, two hundred labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-yelp-5", "bert-base-uncased"),
            "bundle": "usb-yelp-5-bert-base-uncased",
            "set": {"source": "yelp-5", "labeled_per_class": 200},
        },
        "usb-amazon-5-50-back-translation": {
            "title": "USB's Amazon reviews, fifty labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-amazon-5", "bert-base-uncased"),
            "bundle": "usb-amazon-5-bert-base-uncased",
            "set": {"source": "amazon-5", "labeled_per_class": 50},
        },
        "usb-amazon-5-200-back-translation": {
            "title": "USB's Amazon reviews, two hundred labels a class, BERT fine-tuned, views by back-translation",
            "data": ("usb-amazon-5", "bert-base-uncased"),
            "bundle": "usb-amazon-5-bert-base-uncased",
            "set": {"source": "amazon-5", "labeled_per_class": 200},
        },
    },
)
class UsbBackTranslation(TranslatedTokens, UsbTexts):
    """Texts of USB from its own files, each with two back-translations, by way of German and of Russian.

    Its files hold a part of each published training set, of reviews of IMDB their last 1,024 characters; the part `dev`
    is not read here: validation texts come from the training part, as in the other tasks. Model, budget and numbers of
    labels are those of `UsbTexts`.
    """

    versions: ClassVar[int] = 2

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        return (
            [(item.label, item.text) for item in self._entries(data, "train.json", self.versions)],
            [(item.label, item.text) for item in self._entries(data, "test.json", 0)],
        )

    def translations(self, data: Data) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for item in self._entries(data, "train.json", self.versions):
            found.setdefault(item.text, item.versions)
        return found

    def _entries(self, data: Data, part: str, versions: int) -> Iterator[Translated]:
        # USB numbers the positive reviews of IMDB 0, the data hub 1.
        classes = SETS[self.source].classes
        name = f"usb-{self.source.removesuffix('-full')}"
        return read_usb(data.file(name, part), classes[::-1] if self.source == "imdb" else classes, versions)
