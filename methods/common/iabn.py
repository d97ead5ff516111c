"""Instance-aware batch normalisation (Gong et al. 2022, arXiv:2208.05117, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...suite.errors import UsageError
from .moments import var_mean


class InstanceAwareNorm(nn.Module):
    """A batch norm layer that corrects its statistics for images whose own differ significantly.

    For L places per channel, mu and s^2 of the batch (training) or running (eval), and mu_b, s_b^2 of image b:

        mu' = mu + psi(mu_b - mu; k sqrt(s^2 / L))      s'^2 = s^2 + psi(s_b^2 - s^2; k s^2 sqrt(2 / (L - 1)))

    psi(x; l) is x moved by l towards 0, and 0 within [-l, l]; s'^2 is at least 0. eps is added to s^2 in the widths,
    and all variances are unbiased, as in the authors' release. In training mode the running statistics follow those of
    the batch by `momentum`. The wrapped `layer` scales and shifts.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, layer: _BatchNorm, k: float) -> None:
        super().__init__()
        if layer.running_mean is None or layer.running_var is None:
            raise UsageError("instance-aware batch norm needs layers that keep the source's statistics")
        self.k = k
        self.eps = layer.eps
        self.momentum = 0.1 if layer.momentum is None else layer.momentum
        self.register_buffer("mean", layer.running_mean.clone())
        self.register_buffer("var", layer.running_var.clone())
        # Given these statistics the layer leaves its input as it is, up to scale and shift.
        layer.running_mean.zero_()
        layer.running_var.fill_(1.0 - layer.eps)
        self.layer = layer.eval()
        self.train(layer.training)

    def train(self, mode: bool = True) -> InstanceAwareNorm:
        super().train(mode)
        self.layer.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        places = flat.size(2)
        if places > 1:
            own_var, own_mean = var_mean(flat, (2,), correction=1)
        else:
            own_mean, own_var = flat.squeeze(2), torch.zeros_like(flat.squeeze(2))
        mean, var = self._batch(own_mean, own_var, places) if self.training else (self.mean, self.var)
        if places > 1:
            scale = var + self.eps
            mean = mean + _shrink(own_mean - mean, self.k * torch.sqrt(scale / places))
            var = (var + _shrink(own_var - var, self.k * math.sqrt(2 / (places - 1)) * scale)).clamp_min(0.0)
        factor = torch.rsqrt(var + self.eps)
        shape = (-1, x.size(1), *[1] * (x.dim() - 2))
        out: Tensor = self.layer(torch.addcmul((-mean * factor).view(shape), x, factor.view(shape)))
        return out

    def _batch(self, own_mean: Tensor, own_var: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance (C,) of the batch, put together from those of its images (B, C)."""
        n = own_mean.size(0) * places
        mean = own_mean.mean(dim=0)
        squares = (places - 1) * own_var + places * (own_mean - mean).square()
        var = squares.sum(dim=0) / max(1, n - 1)
        with torch.no_grad():
            self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
            self.var.lerp_(var.to(self.var.dtype), self.momentum)
        return mean, var


def _shrink(x: Tensor, width: Tensor) -> Tensor:
    width = width.expand_as(x)
    return x - torch.clamp(x, min=-width, max=width)


def use_instance_aware_norm(model: nn.Module, k: float) -> list[InstanceAwareNorm]:
    """Wrap every batch norm layer within `model`, in place; returns the wraps, in module order.

    Raises `UsageError` when there is none, or one without running statistics.
    """
    wraps: list[InstanceAwareNorm] = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                wraps.append(InstanceAwareNorm(child, k))
                setattr(module, name, wraps[-1])
    if not wraps:
        raise UsageError(f"{type(model).__name__} has no batch norm layer for this method to make instance-aware")
    return wraps
