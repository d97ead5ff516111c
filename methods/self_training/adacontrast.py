"""AdaContrast: contrastive test-time adaptation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.contrastive_views import strong_views, weak_views
from ..common.ema import ema_update
from ..common.features import classifier_of, with_features


@register_method("adacontrast", family="self-training", protocol="stream", paper="arXiv:2204.10377", needs=("images",))
@dataclass
class AdaContrast(StreamMethod):
    """Pseudo-labels refined by neighbours, and contrast of two views (Chen et al. 2022, arXiv:2204.10377).

    With a weak view w and strong views q, k of each image of a batch, features f and probabilities p of the model,
    f' and p' of the momentum model, and a memory of the last M images:

        y^ = argmax of the mean p' of the memory's N nearest f'(w) of f(w), by cosine     (eq. 2)
        L_ce  = CE(p(q), y^)
        L_ctr = -log exp(f(q).f'(k) / tau) / (exp(f(q).f'(k) / tau) + sum_j exp(f(q).m_j / tau))
                m_j: past keys f'(k_j) whose y^_j differs; all normalised                 (eq. 4)
        L_div = sum_c pbar_c log pbar_c,  pbar = mean of p(q) over the batch              (eq. 6)
        theta <- theta - lr * grad (L_ce + L_ctr + L_div)
        theta' <- m theta' + (1 - m) theta                                 before f'(k) is computed

    The batch is predicted after its update, by running statistics. Before `warm` images have been seen, y^ is
    the model's own argmax. SGD with Nesterov momentum 0.9 and weight decay 1e-4 trains all weights. Batch norm
    uses, and moves its running statistics by, the batches of views; dropout is off. The memory starts empty, so
    that the first batches have few negatives or none, and a past key keeps the label it was compared under: choices
    of this implementation, as is one learning rate for all layers. `min_area` 1 leaves out the random crop, as is usual
    for corruptions. Passes per image: 7 (1 to label, 3 to train, 2 of the momentum model, 1 to predict).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 2e-4},
        "cifar100": {"lr": 2e-4},
        "imagenet": {"lr": 2e-4},
        "domainnet126": {"lr": 2e-4, "min_area": 0.2},
    }

    lr: float = hyper(2e-4, low=1e-6, high=1e-1, log=True, help="learning rate")
    queue: int = hyper(16384, low=16, high=65536, help="images in the memory, M")
    neighbours: int = hyper(10, low=1, high=100, help="neighbours N that vote for a pseudo-label")
    temperature: float = hyper(0.07, low=0.01, high=1.0, log=True, help="temperature tau of the contrast")
    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay m of the momentum model's weights")
    warm: int = hyper(1024, low=0, high=16384, help="images before pseudo-labels are refined")
    contrast: float = hyper(1.0, low=0.0, high=10.0, help="weight of the contrast")
    diversity: float = hyper(1.0, low=0.0, high=10.0, help="weight of the diversity")
    min_area: float = hyper(1.0, low=0.05, high=1.0, help="smallest share of an image that a strong view shows")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(True)
        self.momentum_model = copy.deepcopy(self.model).requires_grad_(False)
        self.updater = torch.optim.SGD(
            self.model.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        self.generator = source.generator
        weight = classifier_of(self.model).weight
        # Rows of the memory, the oldest replaced first; `seen` says how many have ever been written.
        self.keys = weight.new_zeros((self.queue, weight.size(1))).detach()
        self.features = torch.zeros_like(self.keys)
        self.p = weight.new_zeros((self.queue, source.n_classes)).detach()
        self.labels = torch.zeros(self.queue, dtype=torch.int64, device=weight.device)
        self.seen = 0

    def predict(self, images: Tensor) -> Tensor:
        weak = weak_views(images, self.generator)
        query, key = (strong_views(images, self.generator, self.min_area) for _ in range(2))
        with _batch_statistics(self.model), _batch_statistics(self.momentum_model):
            labels = self._pseudo_labels(weak)
            logits, q = with_features(self.model, query)
            with torch.no_grad():
                ema_update(self.momentum_model, self.model, self.decay)
                k = F.normalize(with_features(self.momentum_model, key)[1], dim=1)
            loss = F.cross_entropy(logits, labels)
            loss = loss + self.contrast * self._contrast(F.normalize(q, dim=1), k, labels)
            mean = logits.softmax(dim=1).mean(dim=0)
            loss = loss + self.diversity * (mean * (mean + 1e-8).log()).sum()
            self.updater.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.updater.step()
            with torch.no_grad():
                of_weak, features = with_features(self.momentum_model, weak)
        self._remember(k, labels, F.normalize(features, dim=1), of_weak.softmax(dim=1))
        with torch.no_grad():
            return self.model(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _pseudo_labels(self, weak: Tensor) -> Tensor:
        logits, features = with_features(self.model, weak)
        held = min(self.seen, self.queue)
        if self.seen < self.warm or held == 0:
            return logits.argmax(dim=1)
        likeness = F.normalize(features, dim=1) @ self.features[:held].T
        nearest = likeness.topk(min(self.neighbours, held), dim=1).indices
        return self.p[nearest].mean(dim=1).argmax(dim=1)

    def _contrast(self, q: Tensor, k: Tensor, labels: Tensor) -> Tensor:
        held = min(self.seen, self.queue)
        same = labels[:, None] == self.labels[:held]
        negative = (q @ self.keys[:held].T).masked_fill(same, -torch.inf)
        scores = torch.cat([(q * k).sum(dim=1, keepdim=True), negative], dim=1) / self.temperature
        return F.cross_entropy(scores, torch.zeros_like(labels))

    @torch.no_grad()
    def _remember(self, keys: Tensor, labels: Tensor, features: Tensor, p: Tensor) -> None:
        new = len(keys)
        rows = (self.seen + torch.arange(new, device=keys.device)) % self.queue
        if new > self.queue:
            rows, keys, labels, features, p = (part[-self.queue :] for part in (rows, keys, labels, features, p))
        self.keys[rows], self.labels[rows] = keys.to(self.keys.dtype), labels
        self.features[rows], self.p[rows] = features.to(self.keys.dtype), p.to(self.p.dtype)
        self.seen += new


@contextlib.contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm alone is in training mode."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
