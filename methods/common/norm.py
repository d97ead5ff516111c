"""Normalisation layers: their affine parameters, and which statistics batch normalisation uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ...suite.errors import UsageError
from ...suite.protocols.frozen_passes import use_batch_statistics as use_batch_statistics
from .moments import var_mean

NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of all batch, instance, group, layer and RMS norm layers of `model`.

    Raises `UsageError` when there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, NORM_LAYERS)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    if not parameters:
        raise UsageError(
            f"{type(model).__name__} has no norm layer with a scale or shift, which this method trains. "
            "A task grants `norm-layers` only when its model has some."
        )
    return parameters


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers of `model`; raises `UsageError` when there are none."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} has no batch norm layer, whose statistics this method replaces. "
            "A task grants `batch-norm` only when its model has some."
        )
    return layers


def mix_batch_statistics(model: nn.Module, source_weight: float) -> None:
    """Make batch norm layers normalise with w * source + (1 - w) * batch, mean and variance alike.

    `model` is in eval mode, w = `source_weight`. The variance of the batch is the biased one, that of the
    source its running variance. With w = 0 the batch is normalised exactly as in training, with w = 1
    exactly as by the source model. With w > 0 no gradient flows through the statistics. Raises
    `UsageError` when there is no batch norm layer, or none of the source's statistics to mix with.
    """
    layers = batch_norm_layers(model)
    if source_weight == 0.0:
        use_batch_statistics(model)
        return
    for layer in layers:
        layer.register_forward_pre_hook(_Mixture(layer, source_weight))


class _Mixture:
    """Sets the running statistics of a layer to the mixture for the batch that is about to pass.

    A hook, not a layer of its own, so that it also serves subclasses that do more than normalise.
    """

    def __init__(self, layer: _BatchNorm, source_weight: float) -> None:
        if layer.running_mean is None or layer.running_var is None:
            raise UsageError(
                "a batch norm layer of the model keeps no source statistics to mix with; use source_weight=0"
            )
        self.mean = layer.running_mean.clone()
        self.var = layer.running_var.clone()
        self.weight = source_weight

    @torch.no_grad()
    def __call__(self, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        mean, var = _moments(inputs[0], self.mean)
        torch.lerp(mean, self.mean, self.weight, out=layer.running_mean)
        torch.lerp(var, self.var, self.weight, out=layer.running_var)


def _moments(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of each channel of x (B, C, ...), in the type of `like`."""
    n = x.numel() // x.size(1)
    if n == 1:
        return x.flatten().to(like.dtype), torch.zeros_like(like)
    if x.device.type == "cpu" and x.dtype == like.dtype:
        var, mean = var_mean(x, (0, *range(2, x.dim())), correction=0)
        return mean, var
    mean, var = torch.zeros_like(like), torch.zeros_like(like)
    # The kernel of batch norm itself; its variance is unbiased.
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    return mean, var * ((n - 1) / n)


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm layers in training mode use batch statistics but leave their running ones alone."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
