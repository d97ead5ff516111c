"""NOTE: adaptation to temporally correlated streams."""

from __future__ import annotations

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
from ..common.iabn import use_instance_aware_norm
from ..common.losses import entropy
from ..common.optimizers import make_optimizer

_SOURCE_BATCH = 128


@register_method(
    "note", family="self-training", protocol="stream", paper="arXiv:2208.05117", needs=("batch-norm", "source-data")
)
@dataclass
class NOTE(StreamMethod):
    """Instance-aware batch norm and a prediction-balanced reservoir (Gong et al. 2022, arXiv:2208.05117).

    Batch norm becomes `InstanceAwareNorm` with width k, and every image is predicted by running statistics and its
    own. Each then asks for a place in a memory of N = `capacity` images under its predicted class y^ (algorithm 1),
    with m_c images held and n_c seen of class c:

        a place is free                  it is taken
        y^ is not among the largest      a random image of a random one of the largest classes is replaced
        y^ is among the largest          with probability m_y^ / n_y^ a random image of its own class is replaced

    After every `interval` images the memory passes once: the running statistics move by `momentum`, and scales
    and shifts take a step of Adam on the mean entropy. The class is predicted, never true: the tuples of the
    authors' release also hold the true one, unused.

    The layers want a model that was trained with them. The paper trains one from scratch for 200 epochs; here the
    source model is fine-tuned in `setup` on `source_steps` labelled source batches of 128, without augmentation, by
    SGD (Nesterov momentum 0.9, weight decay 5e-4, learning rate falling from `source_lr` to 0 as a cosine); 0 only
    swaps the layers. Other deviations from the release: dropout is off in adaptation; the entropy is not divided by the
    number of classes and has no 1e-6 in its logarithm, of which Adam sees little. Passes per image: 1, and 3 for each
    memorised image in an update, at most 4; besides 384 per source step.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-4},
        "cifar100": {"lr": 1e-4},
        "imagenet": {"lr": 1e-4},
        "domainnet126": {"lr": 1e-4},
    }

    lr: float = hyper(1e-4, low=1e-6, high=1e-1, log=True, help="learning rate of the adaptation")
    k: float = hyper(4.0, low=0.0, high=10.0, help="width k of what counts as the statistics of the batch")
    capacity: int = hyper(64, low=8, high=1024, help="images in the memory, N")
    interval: int = hyper(64, low=1, high=1024, help="images between two updates")
    momentum: float = hyper(0.01, low=0.0, high=1.0, help="momentum of the running statistics in adaptation")
    source_steps: int = hyper(200, low=0, high=100000, help="source batches of 128 in setup; 0 only swaps layers")
    source_lr: float = hyper(0.01, low=1e-4, high=1.0, log=True, help="learning rate of the source training")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        self.generator = source.generator
        norms = use_instance_aware_norm(self.model, self.k)
        self.norms = nn.ModuleList(norms)
        if self.source_steps:
            self._train_on_source(source)
        for norm in norms:
            norm.momentum = self.momentum
        theta = [weight.requires_grad_(True) for weight in self.norms.parameters()]
        self.updater = make_optimizer(theta, "adam", self.lr)
        self.memory: Tensor | None = None
        # Of each place in the memory: class, and the number of the image in the stream.
        self.labels: list[int] = []
        self.arrivals: list[int] = []
        self.counts = [0] * source.n_classes
        self.seen = 0

    def predict(self, images: Tensor) -> Tensor:
        parts = []
        start = 0
        while start < len(images):
            stop = min(len(images), start + self.interval - self.seen % self.interval)
            part = images[start:stop]
            with torch.no_grad():
                logits = self.model(part)
            parts.append(logits)
            self._remember(part, logits)
            if self.seen % self.interval == 0:
                self._update()
            start = stop
        return torch.cat(parts)

    def _remember(self, images: Tensor, logits: Tensor) -> None:
        """Let every image ask for a place. Which stays depends on those before: done on the host, in one transfer."""
        draws = torch.rand((3, len(images)), generator=self.generator, device=images.device, dtype=torch.float64)
        asked = torch.cat([logits.argmax(dim=1, keepdim=True).T.double(), draws]).T.tolist()
        first = self.seen
        for label, *u in asked:
            self._ask(int(label), u)
        if self.memory is None:
            self.memory = images.new_zeros((self.capacity, *images.shape[1:]))
        places = [i for i, arrival in enumerate(self.arrivals) if arrival >= first]
        if places:
            rows = torch.tensor([self.arrivals[i] - first for i in places], device=images.device)
            self.memory[torch.tensor(places, device=images.device)] = images[rows]

    def _ask(self, label: int, u: list[float]) -> None:
        """Give the next image of the stream its place, if it gets one; `u` are three uniform numbers."""
        self.counts[label] += 1
        place: int | None = None
        if len(self.labels) < self.capacity:
            place = len(self.labels)
            self.labels.append(label)
            self.arrivals.append(self.seen)
        else:
            sizes = [self.labels.count(other) for other in range(len(self.counts))]
            largest = [other for other, size in enumerate(sizes) if size == max(sizes)]
            chosen = label if label in largest else largest[int(u[0] * len(largest))]
            if chosen != label or u[2] <= sizes[label] / self.counts[label]:
                held = sorted(
                    arrival for arrival, other in zip(self.arrivals, self.labels, strict=True) if other == chosen
                )
                place = self.arrivals.index(held[int(u[1] * len(held))])
                self.labels[place], self.arrivals[place] = label, self.seen
        self.seen += 1

    def _update(self) -> None:
        assert self.memory is not None, "images are stored before an update"
        images = self.memory[: len(self.labels)]
        self.norms.train()
        try:
            logits = self.model(images)
        finally:
            self.norms.eval()
        self.updater.zero_grad()
        entropy(logits).mean().backward()  # type: ignore[no-untyped-call]
        self.updater.step()

    def _train_on_source(self, source: Source) -> None:
        """Fine-tune all weights on labelled source images, so that the model knows its new layers."""
        if source.images is None or source.labels is None:
            raise UsageError(
                "'note' with source_steps > 0 needs labelled source images, which this task does not grant"
            )
        self.model.train().requires_grad_(True)
        updater = torch.optim.SGD(
            self.model.parameters(), lr=self.source_lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        for step in range(self.source_steps):
            updater.param_groups[0]["lr"] = self.source_lr * (1.0 + math.cos(math.pi * step / self.source_steps)) / 2
            chosen = torch.randint(
                len(source.images), (_SOURCE_BATCH,), generator=self.generator, device=self.generator.device
            )
            loss = F.cross_entropy(self.model(source.images(chosen)), source.labels[chosen])
            updater.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            updater.step()
        self.model.eval().requires_grad_(False)
