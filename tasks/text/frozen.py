"""The track `frozen-encoder`: sentence vectors that are computed once, and a head that is trained on them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array
from ...suite.files import sha256_file
from ...suite.places import cache_folder
from ...suite.protocols.adaptation import AdaptationTask, Recipe
from .encoders import TextEncoder, Tokens, bare_encoder, padded, texts_to_tokens
from .minilm import PAD, WIDTH, embed, load_encoder, sentence_vectors, tokenize
from .vectors import kept_vectors

if TYPE_CHECKING:
    from ...suite.data import Data


class FrozenVectors(AdaptationTask):
    """Model, recipe and views on the public array `vectors`; the pass of the frozen encoder is charged.

    Weak view: each feature is dropped with probability 0.1; strong view: with probability 0.5, and Gaussian noise as
    long as a quarter of the vector is added; what remains is scaled back to length 1.
    """

    recipe: ClassVar[Recipe] = Recipe(optimizer="adamw", lr=3e-3, weight_decay=1e-2, batch_size=32, ema=0.99)
    cached_passes: ClassVar[float] = 1.0
    encoder: ClassVar[str] = "minilm"
    """The data set of the encoder; another one makes another bundle."""
    width: ClassVar[int] = WIDTH
    """Of its sentence vectors."""

    def model(self) -> nn.Module:
        return nn.Sequential(Scale(20.0), nn.Linear(self.width, self.n_classes))

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return torch.from_numpy(np.array(public["vectors"][indices]))

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return drop_features(inputs, generator, share=0.1, noise=0.0)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return drop_features(inputs, generator, share=0.5, noise=0.25)


class ZeroHead(FrozenVectors):
    """`FrozenVectors` with a head that begins at zero and is held near it: softmax regression on the sentence vectors.

    With a few labels the random weights of an ordinary head never leave it. Over 2, 5 and 10 labels a class of TREC,
    AG News, Reuters R8 and 20 Newsgroups (seeds 100 to 107, which no suite uses, 20 validation texts a class) this head
    gives 65.5 % where that of `FrozenVectors` gives 62.9 %, and logistic regression of scikit-learn 65.7 % with C = 1
    and 65.4 % with C = 10; weight decays from 0.1 to 3 lie between 65.3 and 65.7 %. The stronger ones make predictions
    so unsure that filters by confidence keep little. 100 steps are as good as 400.
    """

    recipe: ClassVar[Recipe] = Recipe(optimizer="sgd", lr=1e-2, weight_decay=0.3, batch_size=32, ema=0.99)

    def model(self) -> nn.Module:
        head = nn.Linear(self.width, self.n_classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return nn.Sequential(Scale(20.0), head)


class Scale(nn.Module):
    """Multiplies by a constant: vectors of length 1 are short for a linear head."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * inputs


def drop_features(vectors: Tensor, generator: torch.Generator, share: float, noise: float) -> Tensor:
    """Zero a random `share` of the features of (B, D), add Gaussian noise of length `noise`, scale to length 1."""
    kept = torch.rand(vectors.shape, generator=generator, device=vectors.device) >= share
    result = vectors * kept
    if noise:
        spread = torch.randn(vectors.shape, generator=generator, device=vectors.device)
        result = result + spread * (noise / vectors.shape[1] ** 0.5)
    return F.normalize(result, dim=1)


def encode(
    data: Data, texts: Sequence[str], length: int, tell: Callable[[str], None], encoder: str = "minilm"
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The public arrays of a bundle and facts about how they came to be.

    `ids` (N, length), the token ids of the texts, padded at their end; `vectors` float32 (N, D), their sentence
    vectors: the means over tokens of the states of `encoder`, scaled to length 1. They are kept in the cache folder by
    the digests of encoder and token ids: the facts are those of when they were computed.
    """
    net: Callable[[], nn.Module]
    pooled: Callable[[nn.Module, Tensor], Tensor]
    if encoder == "minilm":
        ids, pad, pooled = tokenize(data, texts, length), PAD, sentence_vectors
        net, weights = functools.cache(lambda: load_encoder(data)), data.describe(encoder).fingerprint
    else:
        ids, pad, net = _of_hub(data, texts, length, encoder)
        pooled, weights = _call, sha256_file(data.file(encoder, "model.safetensors"))
    key = hashlib.sha256(weights.encode() + torch.__version__.encode() + ids.tobytes())
    kept = cache_folder() / "vectors" / f"{key.hexdigest()[:32]}.npz"

    def vectors_of(rows: Array, done: Callable[[int], None]) -> Array:
        return embed(net(), ids[rows], workers=os.cpu_count() or 1, tell=done, pad=pad, pooled=pooled)

    vectors, seconds = kept_vectors(
        kept, (ids != pad).sum(axis=1), vectors_of, lambda done: tell(f"encoding: {done:,} of {len(ids):,} texts")
    )
    facts = {"encode_seconds": round(seconds, 1), "texts_per_second": round(len(ids) / seconds, 1)}
    return {"ids": ids, "vectors": vectors}, facts


def _of_hub(data: Data, texts: Sequence[str], length: int, encoder: str) -> tuple[Array, int, Callable[[], nn.Module]]:
    """Token ids, the number of padding, and what loads the encoder, any one of `transformers`."""
    tokens = Tokens(data, encoder)
    found = texts_to_tokens(tokens, texts, length, "", lambda text: None)
    ids = padded(found["tokens"], found["offsets"], np.arange(len(texts)), length, tokens.marks.pad)
    net = functools.cache(lambda: TextEncoder(bare_encoder(data, encoder), tokens.marks, "mean", scale=1.0).eval())
    return ids.numpy().astype(found["tokens"].dtype), tokens.marks.pad, net


def _call(net: nn.Module, ids: Tensor) -> Tensor:
    vectors: Tensor = net(ids)
    return vectors
