"""A model whose output depends on its input alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .norm import frozen_running_statistics


@contextlib.contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """Inside, dropout and the like are off; batch norm uses the batch as in training, but leaves its averages alone."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    for module in was_training:
        if isinstance(module, _BatchNorm):
            module.train()
    try:
        with frozen_running_statistics(model):
            yield
    finally:
        for module, training in was_training.items():
            module.training = training
