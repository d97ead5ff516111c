"""Wide residual networks for 32 x 32 images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016 (arXiv:1605.07146): depth 6 n + 4, `width` times the channels 16, 32, 64; no dropout.

    (B, 3, 32, 32) -> (B, K). WRN-28-10 has 36.5 million parameters. Modules are called as in RobustBench's weights.
    """

    def __init__(self, depth: int = 28, width: int = 10, n_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, 16 * width, 1, blocks)
        self.block2 = _Stage(16 * width, 32 * width, 2, blocks)
        self.block3 = _Stage(32 * width, 64 * width, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))
        return logits


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = (_Block(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class _Block(nn.Module):
    """Norm, ReLU, convolution, twice. Where the width changes, the shortcut starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(first))))
        return y + (x if self.convShortcut is None else self.convShortcut(first))
