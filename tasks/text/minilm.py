"""The sentence encoder all-MiniLM-L6-v2: token ids, mean-pooled sentence vectors, and a classifier on top of it.

Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019 (arXiv:1908.10084); Wang et al., "MiniLM", NeurIPS 2020.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ...suite.bundle import Array
    from ...suite.data import Data

PAD = 0
CLS = 101
SEP = 102
WIDTH = 384


def tokenize(data: Data, texts: Sequence[str], length: int) -> Array:
    """Token ids (N, length), uint16: [CLS], the first `length` - 2 word pieces, [SEP], then padding with 0."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data.file("minilm", "tokenizer.json")))
    tokenizer.enable_truncation(max_length=length)
    tokenizer.no_padding()
    ids = np.full((len(texts), length), PAD, dtype=np.uint16)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        ids[row, : len(encoding.ids)] = encoding.ids
    return ids


def load_encoder(data: Data) -> nn.Module:
    """The pre-trained encoder in eval mode: (ids, attention mask) -> token states."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    encoder = BertModel(BertConfig.from_json_file(data.file("minilm", "config.json")), add_pooling_layer=False)
    weights = load_file(data.file("minilm", "model.safetensors"))
    needed = encoder.state_dict().keys()
    encoder.load_state_dict({name: weights[name] for name in needed if name in weights}, strict=True)
    return encoder.eval()  # type: ignore[no-any-return]


def sentence_vectors(encoder: nn.Module, ids: Tensor) -> Tensor:
    """The mean of the states of all tokens that are no padding, scaled to length 1: (B, T) -> (B, width)."""
    ids = ids.long()
    mask = ids != PAD
    states = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    weights = mask[:, :, None].to(states.dtype)
    return F.normalize((states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1), dim=1)


def embed(
    encoder: nn.Module,
    ids: Array,
    *,
    workers: int = 1,
    batch_size: int = 32,
    tell: Callable[[int], None] = lambda done: None,
    pad: int = PAD,
    pooled: Callable[[nn.Module, Tensor], Tensor] = sentence_vectors,
) -> Array:
    """Sentence vectors (N, width), float32, of ids (N, T) that are padded by `pad`; `pooled` makes them of a batch.

    Texts are taken in the order of their lengths and cut to the longest of their batch. Each of the `workers` threads
    takes whole batches and computes on one core, so that their number changes no result; `tell` hears the number of
    texts done.
    """
    lengths = (ids != pad).sum(axis=1)
    order = np.argsort(-lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def vectors_of(rows: Array) -> Array:
        batch = torch.from_numpy(ids[rows, : lengths[rows].max()].astype(np.int64))
        with torch.inference_mode():
            vectors: Array = pooled(encoder, batch).float().numpy()
        return vectors

    parts = []
    done = 0
    with one_core_an_operation(), ThreadPoolExecutor(workers) as pool:
        for rows, vectors in zip(batches, pool.map(vectors_of, batches), strict=True):
            parts.append(vectors)
            done += len(rows)
            tell(done)
    result = np.empty((len(ids), parts[0].shape[1]), dtype=np.float32)
    result[order] = np.concatenate(parts)
    return result


@contextlib.contextmanager
def one_core_an_operation() -> Iterator[None]:
    """Inside, torch uses one thread for each operation: threads over batches lose no time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SentenceClassifier(nn.Module):
    """A sentence encoder and a linear head, trained together: ids (B, T) -> logits (B, K)."""

    def __init__(self, encoder: nn.Module, width: int, n_classes: int, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, n_classes)
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.scale * sentence_vectors(self.encoder, ids))
        return logits


def drop_words(ids: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Replace a random `share` of the tokens of (B, T) by padding, which the encoder does not attend to.

    [CLS] and [SEP] stay, positions do not move.
    """
    dropped = torch.rand(ids.shape, generator=generator, device=ids.device) < share
    return ids.masked_fill(dropped & (ids != CLS) & (ids != SEP), PAD)
