"""ResNeXt for 32 x 32 images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CifarResNeXt(nn.Module):
    """Xie et al. 2017 (arXiv:1611.05431), section 4.3: 29 layers in three stages of three blocks of kind C.

    (B, 3, 32, 32) -> (B, K). With 4 groups of width 32 it is the network of AugMix (arXiv:1912.02781), 6.9 million
    parameters. Modules are called as in RobustBench's weights.
    """

    def __init__(self, groups: int = 4, width: int = 32, n_classes: int = 100) -> None:
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        self.stage_1 = _stage(64, 64, 1, groups, width)
        self.stage_2 = _stage(256, 128, 2, groups, width)
        self.stage_3 = _stage(512, 256, 2, groups, width)
        self.classifier = nn.Linear(1024, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """1 x 1, grouped 3 x 3, 1 x 1; a projection on the shortcut where the size changes."""

    def __init__(self, inputs: int, planes: int, stride: int, groups: int, width: int) -> None:
        super().__init__()
        inner, outputs = planes * width // 64 * groups, 4 * planes
        self.conv_reduce = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn_reduce(self.conv_reduce(x)))
        y = F.relu(self.bn(self.conv_conv(y)))
        y = self.bn_expand(self.conv_expand(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stage(inputs: int, planes: int, stride: int, groups: int, width: int) -> nn.Sequential:
    rest = (_Block(4 * planes, planes, 1, groups, width) for _ in range(2))
    return nn.Sequential(_Block(inputs, planes, stride, groups, width), *rest)
