"""The text sets of USB and of LiST, fine-tuned, with the numbers of labels of their papers.

Rows come from local folders in the column layout of the data hub (`tables.py`); `selfbench data fetch NAME` writes them
there through the package `datasets`, where `tasks/datasets.toml` pins a revision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...suite.data import Data
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import half_cosine
from ...suite.registry import register_task
from .encoders import BETWEEN
from .few_labels import Labelled
from .finetune import FineTuned
from .rows import ID_COLUMNS, Ids, Row
from .tables import read_folder


@dataclass(frozen=True)
class TextSet:
    """How a data set is written down: `columns` of its texts, and `classes` in the order of the numbers in `label`.

    A `pair` is two texts that stay apart; else the columns are joined, and one of them must not be empty. `template`
    and `words` are the prompt of LiST's published configuration.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    length: int
    label: str = "label"
    pair: bool = False
    template: str = ""
    words: tuple[str, ...] = ()

    def text(self, row: Row) -> str:
        if self.pair:
            return BETWEEN.join(row.text(column) for column in self.columns)
        cells = [row.cells[column].strip() for column in self.columns]
        return " ".join(filter(None, cells)) or row.text(self.columns[0])

    def read(self, train: Path, test: Path) -> tuple[list[Labelled], list[Labelled]]:
        """The rows of all files of two folders.

        Raises `DataMissing` as `read_folder` does, for an unknown label, and for an id that two rows share.
        """
        numbers = [str(number) for number in range(len(self.classes))]

        def part(folder: Path) -> tuple[list[Labelled], Ids]:
            labelled, ids = [], Ids()
            for row in read_folder(folder, (*self.columns, self.label), ID_COLUMNS):
                ids.add(row)
                labelled.append((self.classes[int(row.one_of(self.label, numbers))], self.text(row)))
            return labelled, ids

        (trained, known), (tested, own) = part(train), part(test)
        own.apart(known)
        return trained, tested


_STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
_MOOD = ("negative", "positive")
_IT_WAS = "{0} It was {mask}."
SETS = {
    "imdb": TextSet(("text",), _MOOD, 512),
    "yahoo-answers": TextSet(
        ("question_title", "question_content", "best_answer"),
        (
            "society and culture", "science and mathematics", "health", "education and reference",
            "computers and internet", "sports", "business and finance", "entertainment and music",
            "family and relationships", "politics and government",
        ),
        512,
        label="topic",
    ),
    "yelp-5": TextSet(("text",), _STARS, 512),
    "amazon-5": TextSet(("title", "content"), _STARS, 512),
    "ag-news-full": TextSet(("text",), ("world", "sports", "business", "science and technology"), 512),
    "dbpedia-14": TextSet(
        ("title", "content"),
        (
            "company", "educational institution", "artist", "athlete", "office holder", "means of transportation",
            "building", "natural place", "village", "animal", "plant", "album", "film", "written work",
        ),
        128,
    ),
    "sst-2": TextSet(("sentence",), _MOOD, 128, template=_IT_WAS, words=("terrible", "great")),
    "subj": TextSet(
        ("text",), ("subjective", "objective"), 128, template="{0} This is {mask}.", words=("subjective", "objective")
    ),
    "mr": TextSet(("text",), _MOOD, 128, template=_IT_WAS, words=("terrible", "great")),
    "mpqa": TextSet(("text",), _MOOD, 128, template=_IT_WAS, words=("terrible", "great")),
    "mnli": TextSet(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), 256, pair=True,
        template="{0}? {mask}, {1}", words=("Yes", "Maybe", "No"),
    ),
    "rte": TextSet(
        ("sentence1", "sentence2"), ("entailment", "not entailment"), 256, pair=True,
        template="{0}? {mask}, {1}", words=("Yes", "No"),
    ),
}  # fmt: skip


class OfSet(FineTuned):
    """Texts of one of `SETS`, whose name a subclass or variant gives as `source`; `prompted` takes its prompt too."""

    source: ClassVar[str]
    prompted: ClassVar[bool] = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if hasattr(cls, "source"):
            of = SETS[cls.source]
            cls.name, cls.classes, cls.n_classes, cls.length = cls.source, of.classes, len(of.classes), of.length
            cls.template, cls.words = (of.template, of.words) if cls.prompted else ("", ())

    def read(self, data: Data) -> tuple[list[Labelled], list[Labelled]]:
        return SETS[self.source].read(data.file(self.source, "train"), data.file(self.source, "test"))


@register_task(
    "imdb-10-finetune",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="IMDB reviews, ten labels a class, BERT fine-tuned",
    budget={"currency": "passes", "limit": 3700000, "wall_seconds": 172800.0},
    data=("imdb", "bert-base-uncased"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "gpu"),
    bundle="imdb-bert-base-uncased",
    preset="usb",
    variants={
        "imdb-50-finetune": {
            "title": "IMDB reviews, fifty labels a class, BERT fine-tuned",
            "data": ("imdb", "bert-base-uncased"),
            "bundle": "imdb-bert-base-uncased",
            "set": {"source": "imdb", "labeled_per_class": 50},
        },
        "ag-news-full-10-finetune": {
            "title": "AG News, ten labels a class, BERT fine-tuned",
            "data": ("ag-news-full", "bert-base-uncased"),
            "bundle": "ag-news-full-bert-base-uncased",
            "set": {"source": "ag-news-full", "labeled_per_class": 10},
        },
        "ag-news-full-50-finetune": {
            "title": "AG News, fifty labels a class, BERT fine-tuned",
            "data": ("ag-news-full", "bert-base-uncased"),
            "bundle": "ag-news-full-bert-base-uncased",
            "set": {"source": "ag-news-full", "labeled_per_class": 50},
        },
        "yahoo-answers-50-finetune": {
            "title": "Yahoo Answers, fifty labels a class, BERT fine-tuned",
            "data": ("yahoo-answers", "bert-base-uncased"),
            "bundle": "yahoo-answers-bert-base-uncased",
            "set": {"source": "yahoo-answers", "labeled_per_class": 50},
        },
        "yahoo-answers-200-finetune": {
            "title": "Yahoo Answers, two hundred labels a class, BERT fine-tuned",
            "data": ("yahoo-answers", "bert-base-uncased"),
            "bundle": "yahoo-answers-bert-base-uncased",
            "set": {"source": "yahoo-answers", "labeled_per_class": 200},
        },
        "yelp-5-50-finetune": {
            "title": "Yelp reviews, five stars, fifty labels a class, BERT fine-tuned",
            "data": ("yelp-5", "bert-base-uncased"),
            "bundle": "yelp-5-bert-base-uncased",
            "set": {"source": "yelp-5", "labeled_per_class": 50},
        },
        "yelp-5-200-finetune": {
            "title": "Yelp reviews, five stars, two hundred labels a class, BERT fine-tuned",
            "data": ("yelp-5", "bert-base-uncased"),
            "bundle": "yelp-5-bert-base-uncased",
            "set": {"source": "yelp-5", "labeled_per_class": 200},
        },
        "amazon-5-50-finetune": {
            "title": "Amazon reviews, five stars, fifty labels a class, BERT fine-tuned",
            "data": ("amazon-5", "bert-base-uncased"),
            "bundle": "amazon-5-bert-base-uncased",
            "set": {"source": "amazon-5", "labeled_per_class": 50},
        },
        "amazon-5-200-finetune": {
            "title": "Amazon reviews, five stars, two hundred labels a class, BERT fine-tuned",
            "data": ("amazon-5", "bert-base-uncased"),
            "bundle": "amazon-5-bert-base-uncased",
            "set": {"source": "amazon-5", "labeled_per_class": 200},
        },
    },
)
class UsbTexts(OfSet):
    """BERT and a linear head on the first 512 tokens of texts of USB (Wang et al. 2022, arXiv:2208.07204).

    The numbers of labels are USB's; its strong view is a
    back-translation, here half of the words is left out. The budget is that of USB's 102,400 steps of FixMatch with
    four labelled and four unlabelled texts. The rate falls by layers there, which it does not here.
    """

    source: ClassVar[str] = "imdb"
    encoder: ClassVar[str] = "bert-base-uncased"
    pooling: ClassVar[str] = "first"
    trained_embeddings: ClassVar[bool] = True
    labeled_per_class: ClassVar[int] = 10
    validation_per_class: ClassVar[int] = 10
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=5e-5, weight_decay=5e-4, batch_size=4, ema=0.0, schedule=half_cosine(0.05), max_norm=1.0
    )


@register_task(
    "sst-2-10-finetune",
    protocol="adaptation",
    version="1",
    metric="accuracy",
    title="SST-2, ten labels a class, RoBERTa fine-tuned by a prompt",
    budget={"currency": "passes", "limit": 640000, "wall_seconds": 172800.0},
    data=("sst-2", "roberta-large"),
    grants=("norm-layers", "strong-augmentation", "masked-tokens", "test-inputs", "oracle-labels"),
    tags=("fine-tuning", "prompt", "gpu"),
    bundle="sst-2-roberta-large",
    variants={
        "sst-2-20-finetune": {
            "title": "SST-2, twenty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("sst-2", "roberta-large"),
            "bundle": "sst-2-roberta-large",
            "set": {"source": "sst-2", "labeled_per_class": 20},
        },
        "sst-2-30-finetune": {
            "title": "SST-2, thirty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("sst-2", "roberta-large"),
            "bundle": "sst-2-roberta-large",
            "set": {"source": "sst-2", "labeled_per_class": 30},
        },
        "subj-10-finetune": {
            "title": "SUBJ, ten labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("subj", "roberta-large"),
            "bundle": "subj-roberta-large",
            "set": {"source": "subj", "labeled_per_class": 10},
        },
        "subj-20-finetune": {
            "title": "SUBJ, twenty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("subj", "roberta-large"),
            "bundle": "subj-roberta-large",
            "set": {"source": "subj", "labeled_per_class": 20},
        },
        "subj-30-finetune": {
            "title": "SUBJ, thirty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("subj", "roberta-large"),
            "bundle": "subj-roberta-large",
            "set": {"source": "subj", "labeled_per_class": 30},
        },
        "mr-10-finetune": {
            "title": "MR, ten labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mr", "roberta-large"),
            "bundle": "mr-roberta-large",
            "set": {"source": "mr", "labeled_per_class": 10},
        },
        "mr-20-finetune": {
            "title": "MR, twenty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mr", "roberta-large"),
            "bundle": "mr-roberta-large",
            "set": {"source": "mr", "labeled_per_class": 20},
        },
        "mr-30-finetune": {
            "title": "MR, thirty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mr", "roberta-large"),
            "bundle": "mr-roberta-large",
            "set": {"source": "mr", "labeled_per_class": 30},
        },
        "mpqa-10-finetune": {
            "title": "MPQA, ten labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mpqa", "roberta-large"),
            "bundle": "mpqa-roberta-large",
            "set": {"source": "mpqa", "labeled_per_class": 10},
        },
        "mpqa-20-finetune": {
            "title": "MPQA, twenty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mpqa", "roberta-large"),
            "bundle": "mpqa-roberta-large",
            "set": {"source": "mpqa", "labeled_per_class": 20},
        },
        "mpqa-30-finetune": {
            "title": "MPQA, thirty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mpqa", "roberta-large"),
            "bundle": "mpqa-roberta-large",
            "set": {"source": "mpqa", "labeled_per_class": 30},
        },
        "mnli-10-finetune": {
            "title": "MNLI, ten labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mnli", "roberta-large"),
            "bundle": "mnli-roberta-large",
            "set": {"source": "mnli", "labeled_per_class": 10},
        },
        "mnli-20-finetune": {
            "title": "MNLI, twenty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mnli", "roberta-large"),
            "bundle": "mnli-roberta-large",
            "set": {"source": "mnli", "labeled_per_class": 20},
        },
        "mnli-30-finetune": {
            "title": "MNLI, thirty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("mnli", "roberta-large"),
            "bundle": "mnli-roberta-large",
            "set": {"source": "mnli", "labeled_per_class": 30},
        },
        "rte-10-finetune": {
            "title": "RTE, ten labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("rte", "roberta-large"),
            "bundle": "rte-roberta-large",
            "set": {"source": "rte", "labeled_per_class": 10},
        },
        "rte-20-finetune": {
            "title": "RTE, twenty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("rte", "roberta-large"),
            "bundle": "rte-roberta-large",
            "set": {"source": "rte", "labeled_per_class": 20},
        },
        "rte-30-finetune": {
            "title": "RTE, thirty labels a class, RoBERTa fine-tuned by a prompt",
            "data": ("rte", "roberta-large"),
            "bundle": "rte-roberta-large",
            "set": {"source": "rte", "labeled_per_class": 30},
        },
        "dbpedia-14-10-finetune": {
            "title": "DBpedia-14, ten labels a class, RoBERTa fine-tuned",
            "data": ("dbpedia-14", "roberta-large"),
            "bundle": "dbpedia-14-roberta-large",
            "set": {"source": "dbpedia-14", "labeled_per_class": 10, "prompted": False},
        },
        "dbpedia-14-20-finetune": {
            "title": "DBpedia-14, twenty labels a class, RoBERTa fine-tuned",
            "data": ("dbpedia-14", "roberta-large"),
            "bundle": "dbpedia-14-roberta-large",
            "set": {"source": "dbpedia-14", "labeled_per_class": 20, "prompted": False},
        },
        "dbpedia-14-30-finetune": {
            "title": "DBpedia-14, thirty labels a class, RoBERTa fine-tuned",
            "data": ("dbpedia-14", "roberta-large"),
            "bundle": "dbpedia-14-roberta-large",
            "set": {"source": "dbpedia-14", "labeled_per_class": 30, "prompted": False},
        },
    },
)
class FewShotTexts(OfSet):
    """RoBERTa-large that fills in label words, by the prompts of LiST's published configuration (arXiv:2110.06274).

    DBpedia-14, of other papers, has a linear head on the first token. Where the hub's test labels are hidden, the
    validation part is the test part, as in the few-shot papers. The budget is that of LiST's published schedule: 400
    steps, and six sessions of 1,000 steps of sixteen texts and 50 epochs of sixty labels.
    """

    source: ClassVar[str] = "sst-2"
    prompted: ClassVar[bool] = True
    encoder: ClassVar[str] = "roberta-large"
    pooling: ClassVar[str] = "first"
    labeled_per_class: ClassVar[int] = 10
    validation_per_class: ClassVar[int] = 10
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=1e-5, weight_decay=0.0, batch_size=4, ema=0.0, schedule=half_cosine(0.0), max_norm=1.0
    )
