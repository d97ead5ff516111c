"""Optimisers of test-time adaptation, with the settings that papers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def make_optimizer(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]], kind: str, lr: float
) -> torch.optim.Optimizer:
    """Adam with betas (0.9, 0.999), or SGD with Nesterov momentum 0.9; both without weight decay.

    `parameters` may be groups with learning rates of their own. `kind` is `adam` or `sgd`.
    """
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999))
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)
    raise ValueError(f"unknown optimiser {kind!r}")
