"""A residual network for 32 x 32 images, small enough to be trained on one processor core."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .pooling import mean_over_pixels


class SmallResNet(nn.Module):
    """Convolutions with batch norm: one to 24 channels, then twice one to twice as many and a residual block of two.

    (B, 3, 32, 32) -> (B, K); the first convolution and those that widen have stride 2, so that blocks work on 8 x 8 and
    4 x 4 pixels. Convolutions of 3 x 3 without bias, blocks after He et al. 2016 (arXiv:1512.03385) with nothing after
    the sum, mean pooling. 261,730 parameters with 10 classes. Weights and activations are channels-last, in which
    convolutions on a processor are faster.
    """

    def __init__(self, n_classes: int = 10, width: int = 24) -> None:
        super().__init__()
        self.stem = _convolution(3, width, 2)
        self.widen1 = _convolution(width, 2 * width, 2)
        self.block1 = _block(2 * width)
        self.widen2 = _convolution(2 * width, 4 * width, 2)
        self.block2 = _block(4 * width)
        self.fc = nn.Linear(4 * width, n_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen1(self.stem(x.contiguous(memory_format=torch.channels_last)))
        x = self.widen2(x + self.block1(x))
        x = x + self.block2(x)
        logits: Tensor = self.fc(mean_over_pixels(x))
        return logits


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(_convolution(width, width), _convolution(width, width))
