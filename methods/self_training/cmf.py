"""CMF: continual momentum filtering."""

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
    "cmf",
    family="self-training",
    protocol="stream",
    paper="-",
    needs=(
        "images",
        "norm-layers",
    ),
)
@dataclass
class Cmf(StreamMethod):
    """Continual momentum filtering: a Kalman filter of the weights, anchored at the source.

    Lee and Chang 2024 (ICLR), "Continual Momentum Filtering on Parameter Space for Online Test-time Adaptation"
    (openreview BllUWdpIOA). theta are the scales and shifts of all norm layers, h the hidden weights with variance s,
    both starting at theta_0 and 0. Losses, weights, view and correction of the prior are those of `Roid`; after the
    step on L

        h <- alpha h + (1 - alpha) theta_0,   s <- alpha^2 s + q                predict
        beta = r / (s + r),  r = 1 - q                                          1 - beta is the gain
        h <- beta h + (1 - beta) theta,       s <- beta s                       update
        theta <- gamma theta + (1 - gamma) h                                    ensemble

    q = `q` times the number of trained weights over 38,400. beta is at least 0.89, and 1 from 0.9999 on, as in
    the authors' release.

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
    alpha: float = hyper(0.99, low=0.9, high=1.0, help="what the hidden weights keep when pulled to the source")
    gamma: float = hyper(0.99, low=0.9, high=1.0, help="share of the adapted weights in the ensemble")
    q: float = hyper(0.005, low=1e-5, high=0.1, log=True, help="variance of the process for 38,400 trained weights")
    temperature: float = hyper(0.3333333333333333, low=0.05, high=2.0, help="of the weights of the samples")
    consistency: bool = hyper(True, choices=(True, False), help="whether a view adds its cross-entropy")
    prior_correction: bool = hyper(True, choices=(True, False), help="whether logits are multiplied by the prior")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        theta = train_affine(model)
        self.theta: list[Tensor] = [*theta]
        self.start = copies(theta)
        self.hidden = copies(self.theta)
        self.variance = 0.0
        # The filter is meaningful for q below 1; only models beyond all common ones come near.
        self.process = min(self.q * sum(part.numel() for part in self.theta) / 38400, 1.0)
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
        self._filter()
        return correct_prior(logits) if self.prior_correction else logits.detach()

    @torch.no_grad()
    def _filter(self) -> None:
        torch._foreach_lerp_(self.hidden, self.start, 1.0 - self.alpha)
        self.variance = self.alpha**2 * self.variance + self.process
        r = 1.0 - self.process
        beta = max(r / (self.variance + r), 0.89)
        beta = beta if beta < 0.9999 else 1.0
        torch._foreach_lerp_(self.hidden, self.theta, 1.0 - beta)
        self.variance *= beta
        torch._foreach_lerp_(self.theta, self.hidden, 1.0 - self.gamma)
