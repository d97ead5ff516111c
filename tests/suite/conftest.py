"""A tiny causal language model over letters, with weights large enough that its choices are clear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def letter_model() -> Callable[..., nn.Module]:
    """letter_model(seed, gain, ...): 8 symbols, 2 layers, float64; `options` are those of `LlamaConfig`."""

    def call(seed: int = 0, gain: float = 6.0, **options: object) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        usual = {"num_key_value_heads": 2, "tie_word_embeddings": False}
        config = LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=1, **(usual | options),
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = LlamaForCausalLM(config)
            with torch.no_grad():
                for value in net.parameters():
                    value.mul_(gain if value.dim() > 1 else 1.0)
        return net.double().eval()

    return call
