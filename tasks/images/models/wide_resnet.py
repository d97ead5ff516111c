"""Wide residual networks in the form in which semi-supervised methods are compared."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels

SLOPE = 0.1
"""Of the leaky ReLU."""
MOMENTUM = 0.001
"""Of the running statistics of batch norm: they average over a thousand steps."""


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016 (arXiv:1605.07146) as in FixMatch (Sohn et al. 2020, arXiv:2001.07685) and its code.

    (B, 3, H, W) -> (B, K). `depth` = 6 n + 4, n blocks a stage; stage s = 0, 1, ... has 16 x 2^s x `width` channels and
    stride 2 but for the first, whose stride is `first_stride`. WRN-28-2 has 1.47 million parameters with 10 classes;
    WRN-37-2, for 96 x 96 pixels, is `depth` 28 with a fourth stage and `first_stride` 2.

    As the authors of FixMatch have it, unlike the first paper: leaky ReLU of slope 0.1; running statistics of momentum
    0.001; shortcuts that leave out norm and activation in all stages but the first; weights of convolutions drawn from
    N(0, 2 / fan-out), of the last layer by Xavier's rule. They give every convolution a bias; here the first alone has
    one, for batch norm follows the others. Weights and activations are channels-last, which is faster.
    """

    def __init__(self, depth: int, width: int, n_classes: int, stages: int = 3, first_stride: int = 1) -> None:
        super().__init__()
        if depth % 6 != 4:
            raise ValueError(f"depth must be 6 n + 4, got {depth}")
        widths = [16, *(16 * width * 2**stage for stage in range(stages))]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        blocks: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            stride = 2 if stage else first_stride
            blocks.append(_Block(inputs, outputs, stride, activate_shortcut=stage == 0))
            blocks += [_Block(outputs, outputs) for _ in range((depth - 4) // 6 - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[-1], momentum=MOMENTUM)
        self.fc = nn.Linear(widths[-1], n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv1(x.contiguous(memory_format=torch.channels_last)))
        x = F.leaky_relu(self.bn(x), SLOPE, inplace=True)
        logits: Tensor = self.fc(mean_over_pixels(x))
        return logits


class _Block(nn.Module):
    """Norm, leaky ReLU, convolution, twice; the shortcut is the input or, where the width changes, a convolution of it.

    With `activate_shortcut` that convolution starts after the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, activate_shortcut: bool = False) -> None:
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.bn1 = nn.BatchNorm2d(inputs, momentum=MOMENTUM)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=MOMENTUM)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        # In place where nothing else reads the values: the same numbers, a fortieth of a step faster.
        first = F.leaky_relu(self.bn1(x), SLOPE, inplace=True)
        y: Tensor = self.conv2(F.leaky_relu(self.bn2(self.conv1(first)), SLOPE, inplace=True))
        if self.shortcut is None:
            return y.add_(x)
        return y.add_(self.shortcut(first if self.activate_shortcut else x))
