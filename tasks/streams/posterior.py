"""A Gaussian over the weights of a source model: SWAG with a diagonal covariance."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.pretrain import reproducible
from ...suite.protocols.stream import StreamTask
from ..augmentations import shift
from .pixels import as_images


def flipped_and_shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored, all moved by up to four pixels: the usual augmentation of CIFAR-10."""
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return shift(torch.where(flipped, images.flip(3), images), generator, pixels=4)


def swag_diagonal(
    model: nn.Module,
    pixels: Array,
    labels: Array,
    *,
    seed: int,
    epochs: int = 1,
    batch_size: int = 100,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    burn_in: float = 0.25,
    every: int = 5,
    augment: Callable[[Tensor, torch.Generator], Tensor] = flipped_and_shifted,
) -> tuple[Array, Array]:
    """Mean and variance (P,) float32 of all parameters of `model` along SGD with a constant rate.

    SWAG-diagonal (Maddox et al. 2019, arXiv:1902.02476, algorithm 1 without its low-rank part), from the source weights
    and on source images, pixels uint8 (N, C, H, W) with classes (N,), under `augment`: momentum 0.9, batch norm in
    training mode. The first moments are gathered after the share `burn_in` of the steps, every
    `every` steps, where the paper gathers them once an epoch: one epoch is all that a build can wait for. CPU, one
    thread; equal seeds give equal moments. `model` is not changed.
    """
    with reproducible(seed):
        model = copy.deepcopy(model).train()
        parameters = list(model.parameters())
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
        steps = epochs * (len(pixels) // batch_size)
        mean = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
        square = torch.zeros_like(mean)
        gathered = step = 0
        for _ in range(epochs):
            order = torch.randperm(len(pixels), generator=generator)
            for chosen in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
                images = augment(as_images(pixels[chosen.numpy()]), generator)
                loss = F.cross_entropy(model(images), torch.from_numpy(labels[chosen.numpy()]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                if step > burn_in * steps and step % every == 0:
                    weights = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).double()
                    mean += weights
                    square += weights.square()
                    gathered += 1
        mean /= gathered
        variance = (square / gathered - mean.square()).clamp_min_(0.0)
        return mean.float().numpy(), variance.float().numpy()


def sampled_posterior(task: StreamTask, bundle: BundleFolder, source: BundleFolder, shown: int, batch: int) -> Bundle:
    """`swag_diagonal` around the weights of `bundle`, on the first images of `source` until `shown` were shown.

    What the task's `build_posterior` returns. A source of fewer images is shown as many times as that takes. It costs
    three passes an image, on one thread.
    """
    model = task.model()
    model.load_state_dict(bundle.model())
    public = source.public()
    pixels, labels = public["source_images"][:shown], public["source_labels"][:shown]
    task.tell(f"sampling the source posterior on {len(pixels):,} images")
    epochs = math.ceil(shown / len(pixels))
    mean, variance = swag_diagonal(model, pixels, labels, seed=0, epochs=epochs, batch_size=batch)
    return Bundle({"posterior_mean": mean, "posterior_variance": variance}, {}, facts={"images": len(pixels)})
