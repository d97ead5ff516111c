"""A tiny encoder of texts, for methods that look into their model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.suite.protocols.adaptation import Recipe, Vocabulary
from selfbench.tasks.text.encoders import LanguageModel, Marks, TextClassifier, TextEncoder, drop_words

MARKS = Marks(pad=0, begin=1, end=2, mask=3, size=30)


@pytest.fixture
def text_task(dropout_task: Any) -> Any:
    """Texts of 6 tokens and two marks, a BERT of two layers with dropout in double precision, and a classifier."""
    from transformers import BertConfig, BertModel

    class TextTask(type(dropout_task)):  # type: ignore[misc]
        recipe = Recipe(optimizer="adamw", lr=0.01, batch_size=8, ema=0.0, points=3)

        def model(self) -> nn.Module:
            config = BertConfig(
                vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                max_position_embeddings=10,
            )  # fmt: skip
            net = BertModel(config, add_pooling_layer=False)
            model = TextClassifier(TextEncoder(net, MARKS, "mean", scale=5.0), self.n_classes).double()
            model.encoder.word_embeddings().requires_grad_(False)
            nn.init.normal_(model.head.weight, std=0.3)
            return model

        def vocabulary(self) -> Vocabulary:
            return Vocabulary(MARKS.size, MARKS.mask, MARKS.special)

        def language_model(self, model: Any) -> nn.Module:
            return LanguageModel(model.encoder)

        def inputs(self, public: Any, indices: Any) -> Tensor:
            words = torch.from_numpy(public["x"][indices]).mul(4).round().long().clamp(-12, 12) + 16
            marks = torch.ones(len(words), 1, dtype=torch.int64)
            return torch.cat([marks * MARKS.begin, words, marks * MARKS.end], dim=1)

        def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
            return drop_words(inputs, generator, 0.2, MARKS)

    return TextTask()
