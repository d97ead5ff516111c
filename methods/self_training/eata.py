"""ETA and EATA: entropy minimisation on reliable and diverse samples, without and with a hold on what was known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, SourceImages, StreamMethod
from ...suite.registry import register_method
from ..common.affine import copies, train_affine
from ..common.optimizers import make_optimizer
from ..common.reliable import reliable_entropy


@register_method("eta", family="self-training", protocol="stream", paper="arXiv:2204.02610", needs=("norm-layers",))
@dataclass
class Eta(StreamMethod):
    """Entropy minimisation on reliable and diverse samples (Niu et al. 2022, arXiv:2204.02610): EATA without Fisher.

    theta are the scales and shifts of all norm layers, batch norm uses the statistics of the batch:

        y_t = f(x_t; theta)                                         predicted before the update
        theta <- theta - lr * grad_theta L(y_t)                     L, S as in `reliable_entropy`, Eqs. 3 to 6

    with E0 = `margin` ln K and epsilon = `d_margin`. There is no step for a batch without a chosen sample.

    All samples pass once with gradients, those not chosen with weight 0, which is exact with any kind of norm layer:
    3 passes per image, 1 without a step. Adam has betas (0.9, 0.999), SGD Nesterov momentum 0.9, as in the comparison
    of Marsden et al. (arXiv:2306.00650), whose constants the presets are; the authors' own SGD has plain momentum, as
    has SAR's comparison (arXiv:2302.12400), of which the rates for single images and for a ViT are.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam", "d_margin": 0.4},
        "cifar100": {"lr": 1e-3, "optimizer": "adam", "d_margin": 0.1},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "d_margin": 0.05},
        "imagenet/bs1": {"lr": 7.8125e-6, "optimizer": "sgd", "d_margin": 0.05},
        "imagenet/vit": {"lr": 1e-3, "optimizer": "sgd", "d_margin": 0.05},
        "imagenet/bs1/vit": {"lr": 1.5625e-5, "optimizer": "sgd", "d_margin": 0.05},
        "domainnet126": {"lr": 2.5e-4, "optimizer": "sgd", "d_margin": 0.1},
    }

    lr: float = hyper(1e-3, low=1e-6, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    margin: float = hyper(0.4, low=0.0, high=1.0, help="entropy bound E0 in units of ln K")
    d_margin: float = hyper(0.4, low=0.0, high=1.01, help="bound epsilon on the cosine to the average prediction")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        self.e0 = self.margin * math.log(source.n_classes)
        self.updater = make_optimizer(train_affine(model), self.optimizer, self.lr)
        self.average: Tensor | None = None

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        loss, self.average = reliable_entropy(logits, self.average, self.e0, self.d_margin)
        if loss is not None:
            self.updater.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.updater.step()
        return logits.detach()


@register_method(
    "eata",
    family="self-training",
    protocol="stream",
    paper="arXiv:2204.02610",
    needs=("norm-layers", "source-unlabeled"),
)
@dataclass
class Eata(StreamMethod):
    """ETA held near the source weights by their Fisher information (Niu et al. 2022, arXiv:2204.02610).

    As `Eta`, with the loss (Eqs. 8 and 9)

        L(y_t) + beta sum_i omega_i (theta_i - theta_0i)^2
        omega = mean_j (grad_theta (1/|D_j|) sum_{x in D_j} CE(y, argmax_k y_k))^2,   y = f(x; theta_0)

    beta = `fisher`, omega_i the diagonal of the Fisher information over batches D_j of `fisher_batch` source images,
    `fisher_images` in all, drawn without replacement and labelled by the model itself. The square is taken of a
    batch's mean gradient and batch norm uses the batch's statistics, as in the authors' release. These images come
    from the source's training set and not, as there, from the clean twins of the test images.

    Cost: 3 passes per image (1 without a step), and 3 per source image before the stream.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam", "d_margin": 0.4, "fisher": 1.0, "fisher_batch": 200},
        "cifar100": {"lr": 1e-3, "optimizer": "adam", "d_margin": 0.1, "fisher": 1.0, "fisher_batch": 200},
        "imagenet": {"lr": 2.5e-4, "optimizer": "sgd", "d_margin": 0.05, "fisher": 2000.0, "fisher_batch": 64},
        "imagenet/bs1": {"lr": 7.8125e-6, "optimizer": "sgd", "d_margin": 0.05, "fisher": 2000.0, "fisher_batch": 64},
        "imagenet/vit": {"lr": 1e-3, "optimizer": "sgd", "d_margin": 0.05, "fisher": 2000.0, "fisher_batch": 64},
        "imagenet/bs1/vit": {
            "lr": 1.5625e-5, "optimizer": "sgd", "d_margin": 0.05, "fisher": 2000.0, "fisher_batch": 64,
        },
        "domainnet126": {"lr": 2.5e-4, "optimizer": "sgd", "d_margin": 0.1, "fisher": 2000.0, "fisher_batch": 128},
    }  # fmt: skip

    lr: float = hyper(1e-3, low=1e-6, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    margin: float = hyper(0.4, low=0.0, high=1.0, help="entropy bound E0 in units of ln K")
    d_margin: float = hyper(0.4, low=0.0, high=1.01, help="bound epsilon on the cosine to the average prediction")
    fisher: float = hyper(1.0, low=0.0, high=10000.0, help="weight beta of the Fisher penalty")
    fisher_images: int = hyper(2000, low=1, high=50000, help="source images of the Fisher information")
    fisher_batch: int = hyper(200, low=1, high=1000, help="source images per gradient")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model
        self.e0 = self.margin * math.log(source.n_classes)
        theta = train_affine(model)
        self.theta: list[Tensor] = [*theta]
        self.start = copies(theta)
        self.updater = make_optimizer(theta, self.optimizer, self.lr)
        self.average: Tensor | None = None
        assert source.images is not None
        batches = _draw(source.images, self.fisher_images, self.fisher_batch, source.generator)
        self.omega = _fisher(model, self.theta, batches)

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        loss, self.average = reliable_entropy(logits, self.average, self.e0, self.d_margin)
        if loss is not None:
            self.updater.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._pull()
            self.updater.step()
        return logits.detach()

    @torch.no_grad()
    def _pull(self) -> None:
        """Add the gradient of the penalty, 2 beta omega (theta - theta_0), to that of the loss."""
        for parameter, start, omega in zip(self.theta, self.start, self.omega, strict=True):
            if parameter.grad is not None:
                parameter.grad.addcmul_(omega, parameter - start, value=2.0 * self.fisher)


def _draw(images: SourceImages, n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of at most `n` images, drawn without replacement."""
    order = torch.randperm(len(images), generator=generator, device=generator.device)[:n]
    return (images(part) for part in torch.split(order, batch))


def _fisher(model: nn.Module, theta: list[Tensor], batches: Iterator[Tensor]) -> list[Tensor]:
    """omega: the mean over batches of the squared gradients of the cross-entropy to the model's own labels."""
    omega = [torch.zeros_like(parameter) for parameter in theta]
    count = 0
    for images in batches:
        logits = model(images)
        loss = F.cross_entropy(logits, logits.detach().argmax(dim=1))
        gradients = torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True)
        torch._foreach_addcmul_(omega, gradients, gradients)
        count += 1
    torch._foreach_div_(omega, count)
    return omega
