"""Dropout in front of a layer that has none of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn import functional as F


@contextlib.contextmanager
def dropout_before(layer: nn.Module, rate: float) -> Iterator[None]:
    """Inside, the input of `layer` is subject to dropout, whatever its mode."""

    def drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(inputs[0], rate), *inputs[1:])

    handle = layer.register_forward_pre_hook(drop)
    try:
        yield
    finally:
        handle.remove()
