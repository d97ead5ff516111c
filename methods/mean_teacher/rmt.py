"""Robust Mean Teacher, without source data and with source replay."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.consistency import symmetric_cross_entropy
from ..common.ema import ema_update
from ..common.features import classifier_of, with_features
from ..common.norm import use_batch_statistics
from ..common.optimizers import make_optimizer
from ..common.views import random_views

_MOST_SOURCE_IMAGES = 100_000
"""The prototypes are means over at most so many source images, as in the authors' release."""


@register_method("rmt", family="mean-teacher", protocol="stream", paper="arXiv:2211.13081", needs=("images",))
@dataclass
class Rmt(StreamMethod):
    """Robust mean teacher: symmetric cross-entropy and contrast with prototypes, source-free (Doebler et al. 2023).

    CVPR 2023, arXiv:2211.13081. Student theta and teacher theta' start at the source model; a is a random view of
    CoTTA, f the features, P a projector of two linear layers, SCE the symmetric cross-entropy. For each batch x_t

        y_t = s(x_t) + t(x_t)                                      predicted before the update
        L   = lambda_st (1/2 SCE(s(x), t(x)) + 1/2 SCE(s(a(x)), t(x))) + lambda_cl L_cl
        theta <- theta - lr grad L,   theta' <- m theta' + (1 - m) theta
        L_cl = -(1/3B) sum_i (1/2) sum_{p in V(i)} log exp(z_i z_p / tau) / sum_{j != i} exp(z_i z_j / tau)

    with z = P(.) of unit length for the 3B inputs c(x), f(x), f(a(x)), and V(i) the other two of the same image;
    c(x) is the prototype that is nearest to f(x) by cosine. All parameters learn; batch norm layers use the
    statistics of the batch.

    Deviation: what the paper calls source-free still takes the prototypes from labelled source images. Here a
    prototype is a row of the classifier's weights, scaled to the length of the image's own features; `rmt-replay`
    with `warmup_images=0` and `replay=0` is the variant of the paper. `projection=0` leaves P out (DomainNet-126).
    Counted passes per image: 7 (student 2 x 3, teacher 1); the projector is not counted.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam"},
        "cifar100": {"lr": 1e-3, "optimizer": "adam"},
        "imagenet": {"lr": 1e-2, "optimizer": "sgd"},
        "domainnet126": {"lr": 1e-2, "optimizer": "sgd", "projection": 0},
    }

    lr: float = hyper(1e-3, low=1e-6, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    momentum: float = hyper(0.999, low=0.9, high=1.0, help="m, of the teacher")
    self_training: float = hyper(1.0, low=0.0, high=10.0, help="lambda_st")
    contrast: float = hyper(1.0, low=0.0, high=10.0, help="lambda_cl")
    temperature: float = hyper(0.1, low=0.01, high=1.0, log=True, help="tau")
    projection: int = hyper(128, low=0, high=1024, help="width of the projector, 0 for none")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(True)
        use_batch_statistics(self.model)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.generator = source.generator
        self.prototypes = classifier_of(self.model).weight.detach().clone()
        self.projector = _projector(self.prototypes, self.projection, self.generator)
        parameters = [*self.model.parameters(), *self.projector.parameters()]
        self.updater = make_optimizer(parameters, self.optimizer, self.lr)

    def predict(self, images: Tensor) -> Tensor:
        view = random_views(images, self.generator)[0]
        logits, features = with_features(self.model, images)
        view_logits, view_features = with_features(self.model, view)
        with torch.no_grad():
            targets: Tensor = self.teacher(images)
            nearest = self.nearest_prototypes(features)
        consistency = 0.5 * (symmetric_cross_entropy(logits, targets) + symmetric_cross_entropy(view_logits, targets))
        contrast = contrastive_loss(
            self.projector(torch.cat([nearest, features, view_features])), len(images), self.temperature
        )
        loss = self.self_training * consistency.mean() + self.contrast * contrast + self.extra_loss()
        self._update(loss)
        return logits.detach() + targets

    def nearest_prototypes(self, features: Tensor) -> Tensor:
        """c(x) for features (B, D): (B, D), of the same length as they."""
        directions = F.normalize(nearest(features, self.prototypes), dim=1)
        chosen: Tensor = directions * torch.linalg.vector_norm(features, dim=1, keepdim=True)
        return chosen

    def extra_loss(self) -> Tensor | float:
        """What a variant adds to L."""
        return 0.0

    def predictor(self) -> nn.Module:
        return Ensemble(self.model, self.teacher)

    def _update(self, loss: Tensor) -> None:
        self.updater.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.updater.step()
        ema_update(self.teacher, self.model, self.momentum)


@register_method(
    "rmt-replay",
    family="mean-teacher",
    protocol="stream",
    paper="arXiv:2211.13081",
    needs=(
        "images",
        "source-data",
    ),
)
@dataclass
class RmtReplay(Rmt):
    """Robust mean teacher with source prototypes, warm-up and source replay (Doebler et al. 2023, arXiv:2211.13081).

    `rmt` with three uses of labelled source images (x_s, y_s), drawn uniformly with replacement:

        prototypes: the mean features of each class, by the source model under batch statistics
        warm-up:    before the stream, L = SCE(s(x_s), t(x_s)), the learning rate rising linearly to lr
        replay:     L is increased by lambda_s CE(s(x_s), y_s)

    `warmup_images=0` and `replay=0` give what the paper calls source-free. The authors' source batches are as large
    as the stream's, and of one image where that shows single ones. Counted passes per image: 7 + 3 `source_batch` / B;
    before the stream, 1 per source image (at most 100,000) and 4 per image of the warm-up.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3, "optimizer": "adam", "source_batch": 200},
        "cifar10/bs1": {"lr": 1e-3, "optimizer": "adam", "source_batch": 1},
        "cifar100": {"lr": 1e-3, "optimizer": "adam", "source_batch": 200},
        "imagenet": {"lr": 1e-2, "optimizer": "sgd", "source_batch": 64},
        "imagenet/bs1": {"lr": 1e-2, "optimizer": "sgd", "source_batch": 1},
        "domainnet126": {"lr": 1e-2, "optimizer": "sgd", "projection": 0, "source_batch": 128},
    }

    lr: float = hyper(1e-3, low=1e-6, high=1e-1, log=True, help="learning rate")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    momentum: float = hyper(0.999, low=0.9, high=1.0, help="m, of the teacher")
    self_training: float = hyper(1.0, low=0.0, high=10.0, help="lambda_st")
    contrast: float = hyper(1.0, low=0.0, high=10.0, help="lambda_cl")
    temperature: float = hyper(0.1, low=0.01, high=1.0, log=True, help="tau")
    projection: int = hyper(128, low=0, high=1024, help="width of the projector, 0 for none")
    replay: float = hyper(1.0, low=0.0, high=10.0, help="lambda_s")
    warmup_images: int = hyper(50000, low=0, high=1000000, help="source images of the warm-up")
    source_batch: int = hyper(200, low=1, high=1024, help="source images per step")

    def setup(self, model: nn.Module, source: Source) -> None:
        super().setup(model, source)
        assert source.images is not None
        assert source.labels is not None
        self.source_images, self.source_labels = source.images, source.labels
        # Indices are drawn on the host, where images are looked up.
        seed = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
        self.sampler = torch.Generator().manual_seed(int(seed))
        self.prototypes = self._source_prototypes(len(self.prototypes))
        self._warm_up()

    def nearest_prototypes(self, features: Tensor) -> Tensor:
        """c(x) for features (B, D): (B, D)."""
        return nearest(features, self.prototypes)

    def extra_loss(self) -> Tensor | float:
        """lambda_s CE on a source batch."""
        if self.replay == 0.0:
            return 0.0
        indices = self._draw()
        loss = F.cross_entropy(self.model(self.source_images(indices)), self.source_labels[indices])
        return self.replay * loss

    def _draw(self) -> Tensor:
        return torch.randint(len(self.source_images), (self.source_batch,), generator=self.sampler)

    @torch.no_grad()
    def _source_prototypes(self, n_classes: int) -> Tensor:
        """Mean features (K, D) of each class. The order is random, because batch statistics depend on it."""
        order = torch.randperm(len(self.source_images), generator=self.sampler)[:_MOST_SOURCE_IMAGES]
        sums = torch.zeros_like(self.prototypes)
        for indices in torch.split(order, self.source_batch):
            _, features = with_features(self.model, self.source_images(indices))
            sums.index_add_(0, self.source_labels[indices], features)
        counts = self.source_labels[order].bincount(minlength=n_classes)
        if (counts == 0).any():
            missing = (counts == 0).nonzero()[0].item()
            raise UsageError(
                f"class {missing} has no source image, so that 'rmt-replay' cannot take its prototype. "
                "Give the task's source data at least one image of every class."
            )
        return sums / counts.unsqueeze(1)

    def _warm_up(self) -> None:
        steps = self.warmup_images // self.source_batch
        for step in range(1, steps + 1):
            for group in self.updater.param_groups:
                group["lr"] = self.lr * step / steps
            images = self.source_images(self._draw())
            with torch.no_grad():
                targets = self.teacher(images)
            self._update(symmetric_cross_entropy(self.model(images), targets).mean())


def nearest(features: Tensor, prototypes: Tensor) -> Tensor:
    """The rows of `prototypes` (K, D) nearest to `features` (B, D) by cosine: (B, D)."""
    cosines = F.normalize(features.detach(), dim=1) @ F.normalize(prototypes, dim=1).T
    return prototypes[cosines.argmax(dim=1)]


def contrastive_loss(z: Tensor, n: int, temperature: float) -> Tensor:
    """L_cl of z (3B, d), its rows ordered by kind of input, then by image; n = B: a scalar."""
    z = F.normalize(z, dim=1)
    similarity = z @ z.T / temperature
    log_p = similarity.fill_diagonal_(-math.inf).log_softmax(dim=1)
    anchors = torch.arange(len(z), device=z.device)
    return -0.5 * sum((log_p[anchors, (anchors + shift) % len(z)].mean() for shift in (n, 2 * n)), z.new_zeros(()))


class Ensemble(nn.Module):
    """The sum of the logits of student and teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images) + self.teacher(images)
        return logits


def _projector(like: Tensor, width: int, generator: torch.Generator) -> nn.Module:
    """P: (N, D) -> (N, width), drawn from `generator` in the standard way of linear layers."""
    if width == 0:
        return nn.Identity()
    layers = [nn.Linear(like.size(1), width).to(like), nn.Linear(width, width).to(like)]
    for layer in layers:
        bound = 1 / math.sqrt(layer.in_features)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
