"""Many views of a batch in one pass, each normalised by its own batch statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .views import draw_views, render_views

CHUNK_GPU = 2**23
"""Numbers in the images of one pass on a GPU: 13 views of 200 CIFAR images, one of 64 ImageNet images."""
CHUNK_CPU = 2**15
"""The same on a CPU: ten views of a single CIFAR image, one of more than five. Several views in a pass save the
overhead of small passes, but leave the order of memory and the kernels that are fast there: with 4 images a view they
cost 1.3 times as much an image as one by one, with 40 twice as much (ResNet-20, channels last)."""


@torch.no_grad()
def mean_over_views(
    model: nn.Module, images: Tensor, n: int, generator: torch.Generator, *, gaussian_std: float = 0.005
) -> Tensor:
    """(1/n) sum_i model(view_i(images)): images (B, C, H, W) in [0, 1] -> logits (B, K), without gradient.

    The views are those of `random_views`. `model` is in eval mode and normalises with batch statistics
    (`use_batch_statistics`), each view with its own. As many views pass at once as `CHUNK_GPU` or `CHUNK_CPU`
    allows; the split changes no random number.
    """
    limit = CHUNK_CPU if images.device.type == "cpu" else CHUNK_GPU
    together = max(1, min(n, limit // images.numel()))
    views = draw_views(n, images.size(2), images.size(3), generator)
    total: Tensor | None = None
    for start in range(0, n, together):
        part = render_views(images, views[start : start + together], generator, gaussian_std=gaussian_std)
        logits = logits_of_views(model, part).sum(dim=0)
        total = logits if total is None else total + logits
    assert total is not None, "there must be a view"
    return total / n


@torch.no_grad()
def target_of_teacher(
    teacher: nn.Module,
    anchor: Callable[[Tensor], Tensor],
    images: Tensor,
    p_th: float,
    n: int,
    generator: torch.Generator,
) -> Tensor:
    """The teacher's logits (B, K): of the images themselves where the source model is confident, else over `n` views.

    Confident means that the mean of max_k softmax(anchor(images)) over the batch is at least `p_th`. No view is
    computed then (CoTTA, arXiv:2203.13591, eq. 4). The two models must be in the state that `mean_over_views` asks for.
    """
    confidence = anchor(images).softmax(dim=1).amax(dim=1).mean()
    # The one wait for the device: what it decides is most of the work.
    if confidence < p_th:
        return mean_over_views(teacher, images, n, generator)
    return teacher(images)  # type: ignore[no-any-return]


def logits_of_views(model: nn.Module, views: Tensor) -> Tensor:
    """(V, B, C, H, W) -> logits (V, B, K) in one pass; batch statistics are those of each view."""
    n, batch = views.shape[:2]
    if n == 1:
        return model(views[0]).unsqueeze(0)  # type: ignore[no-any-return]
    # With the views of an image side by side, (B V, C, ...) is also (B, V C, ...): a channel for each view.
    with _statistics_of_each_view(model, n):
        logits: Tensor = model(views.transpose(0, 1).flatten(0, 1))
    return logits.unflatten(0, (batch, n)).transpose(0, 1)  # type: ignore[no-untyped-call, no-any-return]


@contextlib.contextmanager
def _statistics_of_each_view(model: nn.Module, n: int) -> Iterator[None]:
    """Inside, layers that use batch statistics normalise each of `n` interleaved views by its own.

    A hook normalises what enters; the layer, given mean 0 and variance 1 - eps, then only scales and shifts. So this
    also serves subclasses that do more than normalise.
    """

    def normalise(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        like = x if layer.weight is None else layer.weight
        layer.running_mean = like.new_zeros(layer.num_features)
        layer.running_var = like.new_full((layer.num_features,), 1.0 - layer.eps)
        split = x.reshape(x.size(0) // n, n * x.size(1), *x.shape[2:])
        return (F.batch_norm(split, None, None, training=True, eps=layer.eps).view_as(x), *inputs[1:])

    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is None]
    handles = [layer.register_forward_pre_hook(normalise) for layer in layers]
    try:
        yield
    finally:
        for layer, handle in zip(layers, handles, strict=True):
            layer.running_mean = layer.running_var = None
            handle.remove()
