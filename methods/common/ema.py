"""Exponential moving averages of weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """theta' <- decay * theta' + (1 - decay) * theta for all parameters, in place.

    Both modules have the same architecture. Buffers are left alone: who averages decides where the running
    statistics of the teacher come from.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - decay)
