"""Dropout for language models that come without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

BRANCHES = ("self_attn", "mlp")
"""What the layers of Llama, Qwen, Mistral and their kin add to the residual stream, by the names of the modules."""


@contextlib.contextmanager
def residual_dropout(model: nn.Module, p: float, generator: torch.Generator) -> Iterator[None]:
    """Inside, each number that a layer's attention or feed-forward part adds is 0 with probability `p`, otherwise
    1 / (1 - p) times as large; `generator` draws. Raises `ValueError` on a model without such parts."""
    branches = [module for name, module in model.named_modules() if name.rpartition(".")[2] in BRANCHES]
    if not branches:
        raise ValueError(
            f"the model has no modules called {' or '.join(BRANCHES)}, whose outputs dropout falls on: take a model of "
            "the layout of Llama, or a method without dropout, such as `sft`"
        )

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        kept = torch.rand(added.shape, generator=generator, device=added.device) >= p
        added = added * kept / (1.0 - p)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    hooks = [module.register_forward_hook(drop) for module in branches] if p else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
