"""Scale and shift of norm layers as what a stream method trains: which of them, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .norm import NORM_LAYERS, norm_parameters, use_batch_statistics


def train_affine(model: nn.Module, top_share: float = 0.0) -> list[nn.Parameter]:
    """Put `model` into eval mode with batch statistics, freeze it, and return the scales and shifts to be trained.

    These are all of its norm layers' but those of the top blocks, see `top_norm_layers`. Raises `UsageError` when
    the model has none.
    """
    model.eval().requires_grad_(False)
    use_batch_statistics(model)
    parameters = norm_parameters(model)
    excluded = {id(parameter) for layer in top_norm_layers(model, top_share) for parameter in layer.parameters()}
    trained = [parameter for parameter in parameters if id(parameter) not in excluded]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def top_norm_layers(model: nn.Module, share: float) -> list[nn.Module]:
    """The norm layers of the top `share` of the model's blocks, rounded up to whole ones, and all layers after them.

    "After" and "top" are meant in module order. Blocks are found without names: go down from the model as long as a
    single child holds more than one norm layer; then the children that do are the blocks. Where there are none, the
    children with a norm layer are. A quarter of the blocks is thus the last of the four stages of a ResNet
    (`layer4`), of the three of its CIFAR form, or blocks 9 to 11 and the final norm of a ViT of twelve. Never all
    norm layers: a model of a single block returns an empty list, as does a share of 0.
    """
    if share <= 0.0:
        return []
    trunk = model
    while len(several := [child for child in trunk.children() if len(_norm_layers(child)) > 1]) == 1:
        trunk = several[0]
    blocks = several or [child for child in trunk.children() if _norm_layers(child)]
    top = blocks[len(blocks) - math.ceil(share * len(blocks)) :]
    layers = _norm_layers(model)
    first = next((position for position, layer in enumerate(layers) if top and layer is _norm_layers(top[0])[0]), 0)
    return layers[first:] if first else []


def _norm_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, NORM_LAYERS)]


def normalizes_by_batch(model: nn.Module) -> bool:
    """Whether an image's logits depend on the batch it comes in: some batch norm layer uses batch statistics."""
    return any(isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in model.modules())


def copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Detached copies, to go back to."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def go_back(parameters: Sequence[Tensor], to: Sequence[Tensor], updater: torch.optim.Optimizer) -> None:
    """Put `parameters` back to the values `to` and forget what the optimiser has gathered, in place."""
    torch._foreach_copy_(list(parameters), list(to))
    updater.state.clear()
