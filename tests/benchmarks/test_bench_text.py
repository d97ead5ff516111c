"""What fine-tuning saves by leaving padding out and by tokenising once; ratios within one run, in processor time.

pytest tests/benchmarks/test_bench_text.py -m benchmark_session -s
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from selfbench.suite.data import Data
from selfbench.suite.places import data_folder
from selfbench.tasks.text.encoders import Marks, TextClassifier, TextEncoder, Tokens, padded, texts_to_tokens
from selfbench.tasks.wilds.networks import TextClassifier as CommentClassifier
from selfbench.tasks.wilds.networks import length_groups

pytestmark = pytest.mark.benchmark_session

LENGTH, BATCH, WORDS = 64, 40, 2000
MARKS = Marks(pad=0, begin=1, end=2, mask=3, size=WORDS)


def _processor_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _by_turns(first: Callable[[], Any], second: Callable[[], Any], turns: int) -> float:
    """The median of the second's time over the first's; both are called once before."""
    first(), second()
    return statistics.median(_processor_seconds(second) / _processor_seconds(first) for _ in range(turns))


def _question_lengths(n: int) -> np.ndarray[Any, Any]:
    """Lengths as TREC's are: a mean of 13 tokens, few beyond 30, at most 64."""
    return np.random.default_rng(0).gamma(7.0, 1.9, n).round().clip(4, LENGTH).astype(int)


def _encoder() -> nn.Module:
    """MiniLM's shape with two of its six layers, at random."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=WORDS, hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536
    )
    torch.manual_seed(0)
    return BertModel(config, add_pooling_layer=False)


class _Padded(nn.Module):
    """The same classifier with every text padded to the limit."""

    def __init__(self, grouped: TextClassifier) -> None:
        super().__init__()
        self.grouped = grouped

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        shown = ids != MARKS.pad
        states = self.grouped.encoder.net(input_ids=ids, attention_mask=shown.long()).last_hidden_state
        mean = (states * shown[:, :, None]).sum(dim=1) / shown.sum(dim=1, keepdim=True)
        logits: torch.Tensor = self.grouped.head(20.0 * F.normalize(mean, dim=1))
        return logits


def test_groups_of_similar_length(benchmark: Any) -> None:
    torch.set_num_threads(1)
    grouped = TextClassifier(TextEncoder(_encoder(), MARKS, "mean"), 6).train()
    whole = _Padded(grouped)
    draw = np.random.default_rng(1)
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    for row, n in enumerate(_question_lengths(BATCH)):
        ids[row, :n] = torch.from_numpy(draw.integers(4, WORDS, n))
        ids[row, 0], ids[row, n - 1] = MARKS.begin, MARKS.end
    labels = torch.from_numpy(draw.integers(0, 6, BATCH))

    def step(model: nn.Module) -> None:
        F.cross_entropy(model(ids), labels).backward()

    grouped.eval()
    torch.testing.assert_close(grouped(ids), whole(ids), rtol=0, atol=1e-4)
    grouped.train()
    ratio = _by_turns(lambda: step(grouped), lambda: step(whole), 5)
    benchmark.extra_info["padded over grouped"] = round(ratio, 2)
    print(f"\nforward and backward, padded to {LENGTH} over grouped: {ratio:.2f}")
    benchmark.pedantic(lambda: step(grouped), rounds=3)


def test_groups_of_comments(benchmark: Any) -> None:
    """The classifier of CivilComments, a third as wide and with two of its six layers, beside cutting to the longest.

    Lengths of a mean of some 65 tokens and a long tail, at most 300; a batch of evaluation, forward alone.
    """
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=WORDS, n_layers=2, dim=256, hidden_dim=1024, n_heads=4)
    model = CommentClassifier(DistilBertForSequenceClassification(config)).eval()
    draw = np.random.default_rng(2)
    lengths = draw.lognormal(3.8, 0.85, 32).clip(8, 300).astype(int)
    ids = torch.from_numpy(draw.integers(4, WORDS, (32, 300)))
    ids *= torch.arange(300) < torch.from_numpy(lengths)[:, None]
    longest = int(lengths.max())
    groups = sum(group.ids.numel() for group in length_groups(ids))

    @torch.no_grad()
    def cut() -> torch.Tensor:
        logits: torch.Tensor = model.net(ids[:, :longest], (ids[:, :longest] != 0).long()).logits
        return logits

    @torch.no_grad()
    def grouped() -> torch.Tensor:
        logits: torch.Tensor = model(ids)
        return logits

    torch.testing.assert_close(grouped(), cut(), rtol=0, atol=1e-6)
    ratio = _by_turns(grouped, cut, 3)
    benchmark.extra_info["cut over grouped"] = round(ratio, 2)
    print(
        f"\n32 texts, {lengths.sum():,} tokens: {32 * longest:,} computed when cut, {groups:,} in groups; {ratio:.2f}"
    )
    benchmark.pedantic(grouped, rounds=3)


def test_tokens_are_prepared_once(benchmark: Any) -> None:
    data = Data(data_folder())
    if not data.present("minilm"):
        pytest.skip("needs data that is not here: minilm")
    tokens = Tokens(data, "minilm")
    words = ("what", "is", "the", "name", "of", "a", "river", "in", "asia", "that", "begins", "with", "b", "?")
    texts = [" ".join(words[: max(2, n - 2)]) for n in _question_lengths(1000).tolist()]

    def tokenise() -> dict[str, Any]:
        return texts_to_tokens(tokens, texts, LENGTH, "", lambda text: None)

    public, rows = tokenise(), np.arange(len(texts))
    ratio = _by_turns(lambda: padded(public["tokens"], public["offsets"], rows, LENGTH, 0), tokenise, 5)
    benchmark.extra_info["tokenising over reading"] = round(ratio, 1)
    print(f"\n1,000 questions, tokenised over read from the bundle: {ratio:.1f}")
    benchmark.pedantic(lambda: padded(public["tokens"], public["offsets"], rows, LENGTH, 0), rounds=5)
