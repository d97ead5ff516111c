"""The network of AdaContrast for DomainNet-126."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .libraries import torchvision_net


class BottleneckResNet(nn.Module):
    """A torchvision ResNet-50 ending in 256 features with batch norm, and a linear layer with weight norm.

    Chen et al. 2022 (arXiv:2204.10377). (B, 3, 224, 224) -> (B, K). Modules are called as in their weights.
    """

    def __init__(self, n_classes: int = 126, features: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(torchvision_net("resnet50", features), nn.BatchNorm1d(features))
        self.fc = weight_norm(nn.Linear(features, n_classes), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.encoder(x))
        return logits
