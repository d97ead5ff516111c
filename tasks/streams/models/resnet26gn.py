"""The ResNet of 26 layers for 32 x 32 images, with group norm before the convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8


class ResNet26GN(nn.Module):
    """The network of test-time training (Sun et al. 2020, arXiv:1909.13231) and MEMO (arXiv:2110.09506).

    Pre-activation blocks (He et al. 2016, arXiv:1603.05027) with group norm in 8 groups: three stages of four blocks
    with 16, 32, 64 channels. Shortcuts that change the size halve it by average pooling and add channels of zeros.
    366,938 parameters with 10 classes; (B, 3, 32, 32) -> (B, K). The norm layers are called `bn`, as in the weights.
    """

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.bn = nn.GroupNorm(GROUPS, 64)
        self.fc = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """Norm, ReLU, convolution, twice; added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.bn1 = nn.GroupNorm(GROUPS, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        if self.new:
            x = F.avg_pool2d(x, self.stride)
            x = torch.cat([x, x.new_zeros(len(x), self.new, *x.shape[2:])], dim=1)
        total: Tensor = y + x
        return total


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(3)))
