"""ROID: weighted self-training with a pull towards the source weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.affine import copies, train_affine
from ..common.optimizers import make_optimizer
from ..common.weighted_likelihood import correct_prior, weighted_loss


@register_method(
    "roid",
    family="self-training",
    protocol="stream",
    paper="arXiv:2306.00650",
    needs=(
        "images",
        "norm-layers",
    ),
)
@dataclass
class Roid(StreamMethod):
    """Weighted self-training, a pull to the source weights and a correction of the prior.

    Marsden, Doebler and Yang 2024 (arXiv:2306.00650). theta are the scales and shifts of all norm layers; batch norm
    uses the statistics of the batch. With w and the kept samples S of `certainty_and_diversity`, and one random view
    x~ of the images of S:

        y = f(x; theta),  pbar <- m pbar + (1 - m) mean_b softmax(y_b)                  w looks at pbar before
        L = (1/B) sum_{b in S} w_b (SLR(y_b) + SCE(f(x~_b; theta), y_b))
        theta <- theta - lr * grad L;   theta <- a theta + (1 - a) theta_0              a = `pull`
        returned: y, corrected by the prior of the batch

    pbar starts uniform, m = 0.9. B is the size of the largest batch so far, so that a short last one counts by its
    share. Gradients flow through y in both losses.

    The correction multiplies logits, as the authors' release does and their paper does not: see `correct_prior`;
    `prior_correction` = False leaves it out.

    Cost: 3 + 3 |S| / B passes per image. Adam has betas (0.9, 0.999), SGD Nesterov momentum 0.9.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam"},
        "cifar100": {"lr": 1e-3, "optimizer": "adam"},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd"},
        "domainnet126": {"lr": 2.5e-4, "optimizer": "sgd"},
    }

    lr: float = hyper(1e-3, low=1e-5, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    pull: float = hyper(0.99, low=0.9, high=1.0, help="share a of the adapted weights; the rest is the source's")
    temperature: float = hyper(0.3333333333333333, low=0.05, high=2.0, help="of the weights")
    consistency: bool = hyper(True, choices=(True, False), help="whether a view adds its cross-entropy")
    prior_correction: bool = hyper(True, choices=(True, False), help="whether logits are multiplied by the prior")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        theta = train_affine(model)
        self.theta: list[Tensor] = [*theta]
        self.start = copies(theta)
        self.updater = make_optimizer(theta, self.optimizer, self.lr)
        self.generator = source.generator
        self.average = torch.full((source.n_classes,), 1.0 / source.n_classes, device=source.device)
        self.batch_size = 0

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        generator = self.generator if self.consistency else None
        loss = weighted_loss(self.model, images, logits, self.average, self.temperature, generator)
        self.average = 0.9 * self.average + 0.1 * logits.detach().softmax(dim=1).mean(dim=0)
        self.batch_size = max(self.batch_size, len(images))
        self.updater.zero_grad()
        (loss / self.batch_size).backward()  # type: ignore[no-untyped-call]
        self.updater.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.theta, self.start, 1.0 - self.pull)
        return correct_prior(logits) if self.prior_correction else logits.detach()
