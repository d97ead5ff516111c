"""The small language model of the tasks that bring their own: its architecture, and how its weights were trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

# Imported here, so that the server of forks has it before the first run: it takes seconds.
from transformers import LlamaConfig, LlamaForCausalLM

from ...suite.protocols.optimisation import Recipe, half_cosine, make_optimizer
from ...suite.protocols.policy_losses import sft_loss
from ...suite.protocols.sequences import Sequences
from ...suite.protocols.tokens import CharTokenizer


def small_llama(symbols: int, positions: int = 64) -> nn.Module:
    """A Llama of two layers, 64 wide, over `symbols` characters."""
    config = LlamaConfig(
        vocab_size=symbols, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=positions, tie_word_embeddings=False,
        pad_token_id=CharTokenizer.pad, bos_token_id=None, eos_token_id=CharTokenizer.stop,
        attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


class BaseTraining:
    """Training of a first policy by AdamW of a task's recipe, with a learning rate `lr` of its own over `steps`."""

    def __init__(self, model: nn.Module, recipe: Recipe, lr: float, steps: int) -> None:
        self._model, self._recipe, self._lr, self._steps = model, recipe, lr, steps
        self._optimizer = make_optimizer(recipe, model.parameters())
        self._schedule: Callable[[float], float] = half_cosine(0.05)
        self._done = 0

    def step(self, sequences: Sequences, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """One step on the responses of the sequences `chosen`."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * self._schedule((self._done + 0.5) / self._steps)
        logprobs = sequences.logprobs(self._model, chosen, torch.device("cpu"))
        tokens = torch.from_numpy(sequences.scored())[chosen]
        loss = sft_loss(logprobs, tokens, torch.ones(len(chosen)))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.max_norm)
        self._optimizer.step()
        self._done += 1


def train_epochs(
    model: nn.Module, sequences: Sequences, recipe: Recipe, lr: float, epochs: int, size: int, draw: np.random.Generator
) -> nn.Module:
    """`model` after `epochs` passes over `sequences` in batches of `size`, in eval mode."""
    training = BaseTraining(model.train(), recipe, lr, epochs * -(-len(sequences) // size))
    for _ in range(epochs):
        for chosen in sequences.batches(size, draw):
            training.step(sequences, chosen)
    return model.eval()
