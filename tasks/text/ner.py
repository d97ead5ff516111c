"""Named entities in a language without labels: CoNLL-2002, CoNLL-2003 and WikiAnn, from one language to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.adaptation import Recipe, Split
from ...suite.registry import register_task
from ...suite.scoring import Scores
from .encoders import Tokens, padded
from .entities import score_entities, tag_names
from .tagged import Sentence, read_tagged
from .token_states import TokenStates, TokenStatesTask, checked, offsets_of

NO_TAG = -100
"""Where a token begins no word, and where a word is none."""
PARTS = ("train", "validation", "test")
"""What the members of a data set of tagged sentences are, in the order of its description."""


def warm_linear(share: float) -> float:
    """A linear rise over the first tenth, then a linear fall to 0."""
    return share / 0.1 if share < 0.1 else (1.0 - share) / 0.9


@register_task(
    "conll-ner-en-es",
    protocol="adaptation",
    version="1",
    metric="entity_f1",
    title="CoNLL named entities, English labels, Spanish without",
    budget={"currency": "passes", "limit": 400000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("conll-2003-en", "conll-2002-es", "bert-base-multilingual-cased"),
    grants=("norm-layers", "oracle-labels"),
    tags=("token-tagging", "cross-lingual", "gpu"),
    outputs="tokens",
    variants={
        "conll-ner-en-nl": {
            "title": "CoNLL named entities, English labels, Dutch without",
            "data": ("conll-2003-en", "conll-2002-nl", "bert-base-multilingual-cased"),
            "bundle": "conll-ner-en-nl",
            "set": {"target": "conll-2002-nl"},
        },
        "conll-ner-en-de": {
            "title": "CoNLL named entities, English labels, German without",
            "data": ("conll-2003-en", "conll-2003-de", "bert-base-multilingual-cased"),
            "bundle": "conll-ner-en-de",
            "set": {"target": "conll-2003-de"},
        },
        "conll-ner-es-nl": {
            "title": "CoNLL named entities, Spanish labels, Dutch without",
            "data": ("conll-2002-es", "conll-2002-nl", "bert-base-multilingual-cased"),
            "bundle": "conll-ner-es-nl",
            "set": {"source": "conll-2002-es", "target": "conll-2002-nl"},
        },
        "wikiann-ner-en-ar": {
            "title": "WikiAnn named entities, English labels, Arabic without",
            "data": ("wikiann-en", "wikiann-ar", "bert-base-multilingual-cased"),
            "bundle": "wikiann-ner-en-ar",
            "set": {
                "source": "wikiann-en", "target": "wikiann-ar", "types": ("PER", "ORG", "LOC"), "n_classes": 7,
            },
        },
        "wikiann-ner-en-hi": {
            "title": "WikiAnn named entities, English labels, Hindi without",
            "data": ("wikiann-en", "wikiann-hi", "bert-base-multilingual-cased"),
            "bundle": "wikiann-ner-en-hi",
            "set": {
                "source": "wikiann-en", "target": "wikiann-hi", "types": ("PER", "ORG", "LOC"), "n_classes": 7,
            },
        },
        "wikiann-ner-en-zh": {
            "title": "WikiAnn named entities, English labels, Chinese without",
            "data": ("wikiann-en", "wikiann-zh", "bert-base-multilingual-cased"),
            "bundle": "wikiann-ner-en-zh",
            "set": {
                "source": "wikiann-en", "target": "wikiann-zh", "types": ("PER", "ORG", "LOC"), "n_classes": 7,
            },
        },
    },
)  # fmt: skip
class CrossLingualNer(TokenStatesTask):
    """Multilingual BERT that tags words: labelled sentences of one language, unlabelled ones of another, which counts.

    The setting of ProKD (Ge et al. 2023, arXiv:2301.08855): the source's training part is labelled, the target's
    training part is the pool without its tags, the target's test part is scored. `validation` is the target's own
    development part, whose tags count as labels where they are asked for; `source_validation` and `source_test` are the
    source's. Between Spanish and Dutch, every file is fetched freely.

    A word is tagged at its first piece, as in BERT; a word that the tokenizer leaves out is one unknown token. Of a
    sentence of more than `length` tokens the rest is not read: its words are O, and its entities are missed. Tags are
    learned as IOB2, whatever a file has; entities are those of `conlleval` (`entities.py`). Nothing is augmented: views
    are the sentences themselves and differ by the encoder's dropout. How many sentences of the pool also stand in the
    test part is in the facts of the bundle (`pool_in_test`); they stay, as published.

    The recipe is that of the public code of Wu et al. 2020 (arXiv:2004.12440, microsoft/vert-papers), in the same
    setting: batches of 32, AdamW at 5e-5 that rises over a tenth and falls along a line, decay 0.01, embeddings and the
    three lowest layers as they are. There is no dropout before the linear layer here. The budget holds nine epochs of
    CoNLL's English labels.

    Public arrays: `tokens` (T,), the token ids of all sentences end to end, the source's three parts first; `offsets`
    int64 (N + 1,); `first` uint8 (T,), 1 where a token begins a word. Private arrays: `tags` int8 (W,) of all words,
    `places` int16 (W,), where in its sentence's tokens each begins, -1 where it is not read, `word_offsets`
    int64 (N + 1,), `part` int8 (N,).
    """

    source: ClassVar[str] = "conll-2003-en"
    target: ClassVar[str] = "conll-2002-es"
    types: ClassVar[tuple[str, ...]] = ("PER", "ORG", "LOC", "MISC")
    n_classes: ClassVar[int] = 9
    frozen_layers: ClassVar[int] = 3
    """Of the encoder, from below, beside its embeddings."""
    length: ClassVar[int] = 128
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw",
        lr=5e-5,
        weight_decay=1e-2,
        batch_size=32,
        ema=0.0,
        points=10,
        schedule=warm_linear,
        max_norm=1.0,
    )

    def build(self, data: Data) -> Bundle:
        sentences: list[Sentence] = []
        sizes = []
        for name in (self.source, self.target):
            for member in data.describe(name).members:
                self.tell(f"reading {name}/{member.name}")
                found = read_tagged(data.file(name, member.name), self.types)
                sizes.append(len(found))
                sentences += found
        self.tell(f"tokenising {len(sentences):,} sentences")
        public, places = sentence_tokens(Tokens(data, self.encoder), [item.words for item in sentences], self.length)
        part = np.repeat(np.arange(len(sizes), dtype=np.int8), sizes)
        tested = {item.words for item, own in zip(sentences, part, strict=True) if own == 5}
        pool = [item.words for item, own in zip(sentences, part, strict=True) if own == 3]
        return Bundle(
            public=public,
            private={
                "tags": np.concatenate([np.array(item.tags, np.int8) for item in sentences]),
                "places": places,
                "word_offsets": offsets_of(len(item.words) for item in sentences),
                "part": part,
            },
            facts={
                "tags": list(tag_names(self.types)),
                "sizes": dict(
                    zip([f"{of} {name}" for of in ("source", "target") for name in PARTS], sizes, strict=True)
                ),
                "words_not_read": int((places < 0).sum()),
                "pool_in_test": sum(words in tested for words in pool),
            },
        )

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """The published parts, the same for every seed."""
        private = bundle.private()
        where = [np.flatnonzero(private["part"] == number) for number in range(6)]
        return Split(
            labeled=where[0],
            labels=self._targets(private, where[0]),
            unlabeled=where[3],
            validation=where[4],
            test=where[5],
            source_validation=where[1],
            source_test=where[2],
        )

    def _targets(self, private: Mapping[str, Array], indices: Array) -> Array:
        """Tags int64 (N, length) where a word begins, -100 elsewhere."""
        targets = np.full((len(indices), self.length), NO_TAG, np.int64)
        rows = self.labels(private, indices)
        row, word = np.nonzero(rows[:, 1] >= 0)
        targets[row, rows[row, 1, word]] = rows[row, 0, word]
        return targets

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """int64 (B, 2, length): token ids, and 1 where a token begins a word."""
        ids = padded(public["tokens"], public["offsets"], indices, self.length, self.marks.pad)
        return torch.stack([ids, padded(public["first"], public["offsets"], indices, self.length, 0)], dim=1)

    def places(self, inputs: Tensor) -> Tensor:
        return inputs[:, 1] > 0

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """int16 (N, 2, W): the true tags, -100 behind the last word, and where each word begins, -1 where nowhere."""
        offsets = private["word_offsets"]
        begin, end = offsets[indices], offsets[np.asarray(indices) + 1]
        where = begin[:, None] + np.arange((end - begin).max(initial=0))
        inside = where < end[:, None]
        where = np.where(inside, where, 0)
        tags = np.where(inside, private["tags"][where], NO_TAG)
        return np.stack([tags, np.where(inside, private["places"][where], -1)], axis=1).astype(np.int16)

    def oracle(self, private: Mapping[str, Array], indices: Array) -> Array:
        """The true tags int64 (N, length) of the tokens that begin a word, -1 elsewhere."""
        return np.maximum(self._targets(private, indices), -1)

    def model(self) -> nn.Module:
        encoder = self.pretrained_encoder()
        lowest(encoder.net, self.frozen_layers).requires_grad_(False)
        return TokenTagger(encoder, self.n_classes)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The cross-entropy of the tokens that begin a word: (B, T, K), (B, T)."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten().long(), ignore_index=NO_TAG)

    def sealed(self, outputs: Any, n: int, owner: str) -> Tensor:
        """The class of every token, int16 (n, T)."""
        logits = checked(outputs, (n, self.length, self.n_classes), owner, "sentences")
        return logits.argmax(dim=2).to(torch.int16)

    def score(self, logits: Array, labels: Array) -> Scores:
        """The scores of entities from the classes of tokens (N, T)."""
        true, places = (np.pad(rows, ((0, 0), (0, 1)), constant_values=-1) for rows in np.moveaxis(labels, 1, 0))
        at = np.take_along_axis(np.asarray(logits), np.maximum(places, 0).astype(np.int64), axis=1)
        return score_entities(np.where(places >= 0, at, 0), np.maximum(true, 0), self.types)


class TokenTagger(TokenStates):
    """Logits (B, T, K) of the tokens that begin a word, from (B, 2, T); those of all others are 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.at(inputs[:, 0], inputs[:, 1] > 0, 0.0)


def lowest(net: Any, layers: int) -> nn.ModuleList:
    """The embeddings and the first `layers` layers of an encoder (BERT, RoBERTa, DistilBERT)."""
    stack = (net.encoder if hasattr(net, "encoder") else net.transformer).layer
    return nn.ModuleList([net.embeddings, *stack[:layers]])


def sentence_tokens(tokens: Tokens, sentences: Sequence[Sequence[str]], length: int) -> tuple[dict[str, Array], Array]:
    """The public arrays of tagged sentences, and int16 (W,), where in its sentence's tokens each word begins.

    Each sentence is [begin] pieces [end] of at most `length` tokens; words behind these begin at -1. A word of no piece
    is one unknown token.
    """
    marks = tokens.marks
    pieces = iter(tokens.plain([word for words in sentences for word in words]))
    flat: list[Array] = []
    first: list[Array] = []
    places: list[int] = []
    for words in sentences:
        ids, begins = [marks.begin], [0]
        for _ in words:
            own = next(pieces) or [tokens.unknown]
            places.append(len(ids) if len(ids) < length - 1 else -1)
            ids += own
            begins += [1, *[0] * (len(own) - 1)]
        flat.append(np.array([*ids[: length - 1], marks.end], np.int32))
        first.append(np.array([*begins[: length - 1], 0], np.uint8))
    public = {"tokens": np.concatenate(flat), "offsets": offsets_of(map(len, flat)), "first": np.concatenate(first)}
    return public, np.array(places, np.int16)
