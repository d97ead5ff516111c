"""WaveBlock: a random band of each feature map stays, the rest is amplified (arXiv:2006.06525)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...suite.errors import UsageError


class WaveBlock:
    """A forward pre-hook that multiplies all but a random band of rows of its module's input (B, C, H, W) by `rate`.

    The band has round(`share` H) rows, begins at a row drawn uniformly from `generator`, and is the same for a whole
    batch. In eval mode the input is left alone. Copies of the module keep the hook itself, and with it the generator.
    """

    def __init__(self, rate: float, share: float, generator: torch.Generator) -> None:
        self.rate, self.share, self.generator = rate, share, generator

    def __deepcopy__(self, memo: dict[int, Any]) -> WaveBlock:
        return self

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training:
            return None
        x: Tensor = inputs[0]
        height = x.size(2)
        band = round(self.share * height)
        start = torch.randint(height - band + 1, (1,), generator=self.generator, device=x.device)
        rows = torch.arange(height, device=x.device)
        stays = (rows >= start) & (rows < start + band)
        factor = torch.where(stays, 1.0, self.rate).to(x.dtype)
        return (x * factor.view(1, 1, -1, 1), *inputs[1:])


def add_wave_blocks(model: nn.Module, rate: float, share: float, generator: torch.Generator) -> None:
    """Put WaveBlocks before the last two stages of `model`, but none before the first.

    Stages are the children that hold convolutions, of the model or of the only child of it that does. In a ResNet these
    are the places of the authors' release, behind the second and the third group of blocks. Raises `UsageError` when
    there are fewer than two stages.
    """
    stages = [model]
    while len(stages) == 1 and not isinstance(stages[0], nn.Conv2d):
        stages = [
            child for child in stages[0].children() if any(isinstance(part, nn.Conv2d) for part in child.modules())
        ]
    if len(stages) < 2:
        raise UsageError(
            f"{type(model).__name__} has no two stages with convolutions, between which WaveBlocks stand; use wave=1."
        )
    for stage in stages[1:][-2:]:
        stage.register_forward_pre_hook(WaveBlock(rate, share, generator))
