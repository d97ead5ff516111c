"""Tent: test-time entropy minimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.losses import entropy
from ..common.norm import norm_parameters, use_batch_statistics


@register_method("tent", family="self-training", protocol="stream", paper="arXiv:2006.10726", needs=("norm-layers",))
@dataclass
class Tent(StreamMethod):
    """Entropy minimisation on the norm layers' scale and shift (Wang et al. 2021, arXiv:2006.10726).

    For each batch x_t, with theta the scales gamma and shifts beta of all norm layers:

        y_t = f(x_t; theta)                                     predicted before the update
        theta <- theta - lr * grad_theta (1/B) sum_b H(y_tb)    H = entropy of softmax(y)

    Batch norm layers normalise with the statistics of the batch; the rest of the model is frozen and in
    eval mode. Adam has betas (0.9, 0.999); SGD has Nesterov momentum 0.9, the default of the authors'
    release. With `steps` > 1 forward and update alternate, and the logits of the last forward are
    returned, as there. Nothing is ever reset. The presets of ViT-Base and of single images are those of SAR's
    comparison (arXiv:2302.12400), whose SGD has plain momentum.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam"},
        "cifar100": {"lr": 1e-3, "optimizer": "adam"},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd"},
        "imagenet/bs1": {"lr": 7.8125e-6, "optimizer": "sgd"},
        "imagenet/vit": {"lr": 1e-3, "optimizer": "sgd"},
        "imagenet/bs1/vit": {"lr": 1.5625e-5, "optimizer": "sgd"},
        "domainnet126": {"lr": 2.5e-4, "optimizer": "sgd"},
    }

    lr: float = hyper(1e-3, low=1e-6, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    steps: int = hyper(1, low=1, high=10, help="updates per batch")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        use_batch_statistics(self.model)
        theta = [parameter.requires_grad_(True) for parameter in norm_parameters(self.model)]
        self.updater: torch.optim.Optimizer
        if self.optimizer == "adam":
            self.updater = torch.optim.Adam(theta, lr=self.lr, betas=(0.9, 0.999))
        else:
            self.updater = torch.optim.SGD(theta, lr=self.lr, momentum=0.9, nesterov=True)

    def predict(self, images: Tensor) -> Tensor:
        for _ in range(self.steps):
            logits: Tensor = self.model(images)
            self.updater.zero_grad()
            entropy(logits).mean().backward()  # type: ignore[no-untyped-call]
            self.updater.step()
        return logits.detach()
