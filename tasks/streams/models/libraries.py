"""Architectures that come with torchvision and timm; the libraries are imported when a model is made."""

from __future__ import annotations

from torch import nn

from ....suite.errors import UsageError


def torchvision_net(name: str, n_classes: int = 1000) -> nn.Module:
    """The torchvision classifier `name` without weights. Raises `UsageError` where the library is missing."""
    try:
        from torchvision.models import get_model
    except ImportError:
        raise UsageError(f"The model '{name}' needs torchvision: type `pip install 'selfbench[images]'`.") from None
    net: nn.Module = get_model(name, weights=None, num_classes=n_classes)
    return net


def timm_net(name: str, n_classes: int = 1000) -> nn.Module:
    """The timm classifier `name` without weights. Raises `UsageError` where the library is missing."""
    try:
        from timm import create_model
    except ImportError:
        raise UsageError(f"The model '{name}' needs timm: type `pip install 'selfbench[timm]'`.") from None
    net: nn.Module = create_model(name, pretrained=False, num_classes=n_classes)
    return net
