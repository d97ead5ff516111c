"""DeYO: entropy minimisation on samples whose prediction hangs on the shape of objects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.affine import train_affine
from ..common.losses import entropy
from ..common.optimizers import make_optimizer


@register_method(
    "deyo",
    family="self-training",
    protocol="stream",
    paper="arXiv:2403.07366",
    needs=(
        "images",
        "norm-layers",
    ),
)
@dataclass
class DeYO(StreamMethod):
    """Entropy minimisation where destroying the object's shape lowers the confidence (Lee et al. 2024, 2403.07366).

    theta are the scales and shifts of the norm layers below the top blocks, p = softmax(y), c = argmax y, and x' the
    image with its 4 x 4 patches shuffled; batch norm uses the statistics of the batch:

        y = f(x; theta)                                             predicted before the update
        S1 = {b : H_b < tau_Ent},  tau_Ent = `margin` ln K
        PLPD_b = p_bc(x) - p_bc(x')                                 Eq. 7, for S1 alone
        S2 = {b in S1 : PLPD_b > tau_PLPD}                          Eq. 8
        theta <- theta - lr * grad (1/|S2|) sum_{S2} (exp(Ent_0 - H_b) + exp(PLPD_b)) H_b      Eqs. 10, 11

    Ent_0 = 0.4 ln K, the weight is a constant. Without a sample in S2 there is no step. The top blocks are those of
    `top_norm_layers` with the share `top_share`, as in SAR. As in the authors' release, x' holds S1 alone, so that
    with batch norm its statistics are those of S1.

    Cost: 3 + |S1| / B passes per image, 2 less without a step. Adam has betas (0.9, 0.999), SGD Nesterov momentum
    0.9, as in the comparison of Marsden et al. (arXiv:2306.00650), whose constants the presets are; tau_PLPD = 0.3 on
    ImageNet is the authors' for the mild setting of a BatchNorm model (0.2 elsewhere), where that comparison has 0.2.
    The presets of networks without batch norm and of single images are the authors', whose SGD has plain momentum.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam", "plpd": 0.2},
        "cifar100": {"lr": 1e-3, "optimizer": "adam", "plpd": 0.2},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "plpd": 0.3},
        "imagenet/bs1": {"lr": 1.5625e-5, "optimizer": "sgd", "plpd": 0.2},
        "imagenet/gn": {"lr": 2.5e-4, "optimizer": "sgd", "plpd": 0.2},
        "imagenet/vit": {"lr": 1e-3, "optimizer": "sgd", "plpd": 0.2},
        "imagenet/bs1/vit": {"lr": 3.125e-5, "optimizer": "sgd", "plpd": 0.2},
        "domainnet126": {"lr": 2.5e-4, "optimizer": "sgd", "plpd": 0.2},
    }

    lr: float = hyper(1e-3, low=1e-5, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    margin: float = hyper(0.5, low=0.0, high=1.0, help="entropy bound tau_Ent in units of ln K")
    margin_e0: float = hyper(0.4, low=0.0, high=1.0, help="Ent_0 of the weight in units of ln K")
    plpd: float = hyper(0.2, low=-1.0, high=1.0, help="bound tau_PLPD on the loss of confidence")
    patches: int = hyper(4, low=1, high=16, help="patches along each side")
    top_share: float = hyper(0.25, low=0.0, high=0.9, help="share of the blocks, from the top, that is not trained")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        self.log_k = math.log(source.n_classes)
        self.generator = source.generator
        self.updater = make_optimizer(train_affine(model, self.top_share), self.optimizer, self.lr)

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        h = entropy(logits)
        # The release passes S1 alone through the model, and takes no step without samples: the host has to know them.
        (chosen,) = torch.nonzero(h.detach() < self.margin * self.log_k, as_tuple=True)
        if len(chosen) == 0:
            return logits.detach()
        loss = self._loss(h[chosen], logits.detach()[chosen], images[chosen])
        if loss is not None:
            self.updater.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.updater.step()
        return logits.detach()

    def _loss(self, h: Tensor, logits: Tensor, images: Tensor) -> Tensor | None:
        """The loss of S1 from its entropies (S,), logits (S, K) and images; None where S2 is empty."""
        with torch.no_grad():
            shuffled = self.model(shuffle_patches(images, self.patches, self.generator))
            confidence, label = logits.softmax(dim=1).max(dim=1)
            plpd = confidence - shuffled.softmax(dim=1).gather(1, label.unsqueeze(1)).squeeze(1)
            kept = plpd > self.plpd
            count = kept.sum()
            weight = torch.where(kept, (self.margin_e0 * self.log_k - h).exp() + plpd.exp(), 0.0)
        return (weight * h).sum() / count if bool(count) else None


def shuffle_patches(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Shuffle the n x n patches of every image (B, C, H, W) on its own, a new order for each.

    Sides that n does not divide are resized to a multiple and back.
    """
    height, width = images.shape[2:]
    size = (height // n * n, width // n * n)
    x = images if size == (height, width) else _resize(images, size)
    batch, channels = images.shape[:2]
    parts = (size[0] // n, size[1] // n)
    x = x.reshape(batch, channels, n, parts[0], n, parts[1]).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(x.shape[:2], generator=generator, device=generator.device).argsort(dim=1)
    x = x.gather(1, order[:, :, None, None, None].expand_as(x))
    x = x.reshape(batch, n, n, channels, *parts).permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, *size)
    return x if size == (height, width) else _resize(x, (height, width))


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", antialias=True)
