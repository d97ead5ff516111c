"""The ResNet of 20 layers for 32 x 32 images, with batch norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ResNet20(nn.Module):
    """He et al. 2016 (arXiv:1512.03385), section 4.2, n = 3: three stages of three blocks with 16, 32, 64 channels.

    Shortcuts that change the size are of kind A: every second pixel, new channels zero, no parameters.
    269,722 parameters with 10 classes; (B, 3, 32, 32) -> (B, K).
    """

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """Two convolutions with batch norm, added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new:
            # Zeros on both sides of the old channels.
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return F.relu(y + x)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), _Block(outputs, outputs, 1), _Block(outputs, outputs, 1))
