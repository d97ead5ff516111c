"""RoTTA: robust test-time adaptation in dynamic scenarios."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.consistency import soft_cross_entropy
from ..common.ema import ema_update
from ..common.moments import var_mean
from ..common.norm import batch_norm_layers
from ..common.optimizers import make_optimizer
from ..common.views import random_views


@register_method(
    "rotta",
    family="mean-teacher",
    protocol="stream",
    paper="arXiv:2303.13899",
    needs=(
        "images",
        "batch-norm",
    ),
)
@dataclass
class RoTTA(StreamMethod):
    """Robust batch norm and a balanced, timely memory for a mean teacher (Yuan et al. 2023, arXiv:2303.13899).

    The teacher theta' predicts every batch, with its running statistics. Each image then asks for a place in a memory
    of N = `capacity` by its pseudo-label y^ and its entropy (section 3.3). With A its age in images,

        H = lambda_t / (1 + exp(-A / N)) + lambda_u (-sum_k p_k log p_k) / log K

    If its class holds less than N / K it takes a free place, or, when there is none, competes with the largest
    classes, else with its own: the image of the largest H makes room, if that exceeds the newcomer's. After every
    `interval` images, over the memory x with teacher targets y' (eqs. 8, 9):

        L = (1/N) sum_i E(A_i) CE(softmax y'_i, f(view(x_i); theta)),  E(A) = exp(-A/N) / (1 + exp(-A/N))
        theta' <- (1 - nu) theta' + nu theta

    theta are the scales and shifts of batch norm. In these updates alone, batch norm moves its running statistics
    and normalises with them as moved, mu <- (1 - a) mu + a mu_batch, the biased variance alike (eqs. 2, 3); a
    gradient flows through the batch's share. A batch is predicted as a whole before it updates anything, as in the
    authors' release. Deviation from it: dropout is off. Which image stays depends on those before it, so that the
    memory's bookkeeping is done on the host, once per batch. Passes per image: 1, and 4 for each memorised image in
    an update: at most 5.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-3},
        "cifar100": {"lr": 1e-3},
        "imagenet": {"lr": 1e-3},
        "domainnet126": {"lr": 1e-3},
    }

    lr: float = hyper(1e-3, low=1e-5, high=1e-1, log=True, help="learning rate")
    capacity: int = hyper(64, low=8, high=1024, help="images in the memory, N")
    interval: int = hyper(64, low=1, high=1024, help="images between two updates")
    nu: float = hyper(0.001, low=1e-4, high=0.1, log=True, help="rate nu of the teacher's weights")
    alpha: float = hyper(0.05, low=0.0, high=1.0, help="share a of the batch in the statistics of batch norm")
    lambda_t: float = hyper(1.0, low=0.0, high=10.0, help="weight of age in the memory")
    lambda_u: float = hyper(1.0, low=0.0, high=10.0, help="weight of uncertainty in the memory")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        layers = batch_norm_layers(self.model)
        if any(layer.running_mean is None for layer in layers):
            raise UsageError("'rotta' needs batch norm layers that keep the source's statistics")
        self.teacher = copy.deepcopy(self.model)
        theta = [weight.requires_grad_(True) for layer in layers for weight in layer.parameters(recurse=False)]
        self.updater = make_optimizer(theta, "adam", self.lr)
        self.generator = source.generator
        self.n_classes = source.n_classes
        self.memory: Tensor | None = None
        # Of each place in the memory: class, uncertainty, and the number of the image in the stream.
        self.labels: list[int] = []
        self.doubts: list[float] = []
        self.arrivals: list[int] = []
        self.seen = 0

    def predict(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.teacher(images)
            p = logits.softmax(dim=1)
            doubts = -(p * (p + 1e-6).log()).sum(dim=1)
            asked = torch.stack([p.argmax(dim=1).double(), doubts.double()]).tolist()
        start = 0
        while start < len(images):
            stop = min(len(images), start + self.interval - self.seen % self.interval)
            first = self.seen
            for label, doubt in zip(asked[0][start:stop], asked[1][start:stop], strict=True):
                self._ask(int(label), doubt)
            self._store(images[start:stop], first)
            if self.seen % self.interval == 0:
                self._update()
            start = stop
        return logits

    def predictor(self) -> nn.Module:
        return self.teacher

    def _ask(self, label: int, doubt: float) -> None:
        """Give the next image of the stream its place in the memory, if it gets one."""
        place: int | None = None
        if self.labels.count(label) < self.capacity / self.n_classes and len(self.labels) < self.capacity:
            place = len(self.labels)
            for entries in (self.labels, self.doubts, self.arrivals):
                entries.append(0)
        else:
            rivals = {label}
            if self.labels.count(label) < self.capacity / self.n_classes:
                sizes = Counter(self.labels)
                rivals = {other for other, size in sizes.items() if size == max(sizes.values())}
            scores = [
                (self._score(self.seen - self.arrivals[i], self.doubts[i]), i)
                for i, other in enumerate(self.labels)
                if other in rivals
            ]
            highest, worst = max(scores)
            if highest > self._score(0, doubt):
                place = worst
        if place is not None:
            self.labels[place], self.doubts[place], self.arrivals[place] = label, doubt, self.seen
        self.seen += 1

    def _score(self, age: int, doubt: float) -> float:
        timeliness = self.lambda_t / (1.0 + math.exp(-age / self.capacity))
        return timeliness + self.lambda_u * doubt / math.log(self.n_classes)

    def _store(self, images: Tensor, first: int) -> None:
        """Copy those of `images`, the first of which has the number `first`, that have a place."""
        if self.memory is None:
            self.memory = images.new_zeros((self.capacity, *images.shape[1:]))
        places = [i for i, arrival in enumerate(self.arrivals) if arrival >= first]
        if places:
            rows = torch.tensor([self.arrivals[i] - first for i in places], device=images.device)
            self.memory[torch.tensor(places, device=images.device)] = images[rows]

    def _update(self) -> None:
        assert self.memory is not None, "images are stored before an update"
        order = sorted(range(len(self.labels)), key=lambda i: (self.labels[i], self.arrivals[i]))
        images = self.memory[torch.tensor(order, device=self.memory.device)]
        ages = images.new_tensor([(self.seen - self.arrivals[i]) / self.capacity for i in order])
        view = random_views(images, self.generator)[0]
        with _moving_statistics(self.teacher, self.alpha), torch.no_grad():
            target = self.teacher(images)
        with _moving_statistics(self.model, self.alpha):
            logits = self.model(view)
        loss = (soft_cross_entropy(logits, target) * torch.sigmoid(-ages)).mean()
        self.updater.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.updater.step()
        ema_update(self.teacher, self.model, 1.0 - self.nu)


@contextlib.contextmanager
def _moving_statistics(model: nn.Module, alpha: float) -> Iterator[None]:
    """Inside, batch norm moves its running statistics by `alpha` towards the batch, and normalises with the result.

    A hook normalises what enters; the layer, given mean 0 and variance 1 - eps, then only scales and shifts.
    """
    layers = batch_norm_layers(model)
    kept = [(layer.running_mean, layer.running_var) for layer in layers]

    def normalise(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        mean, var = statistics[id(layer)]
        batch_var, batch_mean = var_mean(x, (0, *range(2, x.dim())), correction=0)
        new_mean, new_var = (1.0 - alpha) * mean + alpha * batch_mean, (1.0 - alpha) * var + alpha * batch_var
        mean.copy_(new_mean.detach())
        var.copy_(new_var.detach())
        shape = (-1, *[1] * (x.dim() - 2))
        return ((x - new_mean.view(shape)) * torch.rsqrt(new_var + layer.eps).view(shape), *inputs[1:])

    statistics: dict[int, Any] = {}
    handles = []
    for layer, pair in zip(layers, kept, strict=True):
        statistics[id(layer)] = pair
        assert pair[0] is not None, "checked in setup"
        layer.running_mean, layer.running_var = torch.zeros_like(pair[0]), torch.full_like(pair[0], 1.0 - layer.eps)
        handles.append(layer.register_forward_pre_hook(normalise))
    try:
        yield
    finally:
        for layer, (mean, var), handle in zip(layers, kept, handles, strict=True):
            layer.running_mean, layer.running_var = mean, var
            handle.remove()
