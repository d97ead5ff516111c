"""LAME: the outputs are adapted, the model is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.features import classifier_of, no_features


@register_method("lame", family="baseline", protocol="stream", paper="arXiv:2201.05718",
                 frozen=("source", "source-features"))  # fmt: skip
@dataclass
class Lame(StreamMethod):
    """Laplacian adjusted maximum-likelihood estimation of a batch's assignments (Boudiaf et al. 2022, 2201.05718).

    The frozen source model gives probabilities q_i and features z_i, scaled to length 1; with affinities w_ij the
    assignments Y = (y_i) minimise (Eqs. 4 to 6)

        E(Y) = sum_i KL(y_i || q_i) - sum_ij w_ij y_i.y_j               (the public code's value of E is used)
        y_i <- softmax(log q_i + sum_j w_ij y_j)                        from y_i = q_i

    until E changes by less than 1e-8 of itself or `steps` are done. Affinities: `knn`, 1 for the `neighbours` nearest
    others; `rbf`, exp(-d_ij^2 / 2 s^2) with s the mean distance to the `neighbours`-th nearest, itself the first;
    `linear`, z_i.z_j. Returned are the logarithms of Y.

    The public code's default is `rbf` with 5, as in the comparison of Marsden et al. (arXiv:2306.00650). Its sum of
    affinities grows with the batch: with ten classes in batches of 200 nearly all images fall to one class. `knn` sums
    to `neighbours`, whatever the batch.

    Cost: 1 pass per image; nothing is kept from batch to batch. Features are the input of the last linear layer.
    """

    affinity: str = hyper("knn", choices=("knn", "rbf", "linear"))
    neighbours: int = hyper(5, low=1, high=50, help="nearest neighbours of `rbf` and `knn`")
    steps: int = hyper(100, low=1, high=1000, help="bound on the iterations")

    def setup(self, model: nn.Module, source: Source) -> None:
        classifier_of(model)
        self.model = model.eval().requires_grad_(False)
        self.frozen = source.frozen(self.model)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        logits, features = self.frozen.with_features(images)
        if features is None:
            raise no_features(self.model)
        w = affinities(F.normalize(features, dim=1), self.affinity, self.neighbours)
        return assign(logits.softmax(dim=1), w, self.steps)


def affinities(z: Tensor, kind: str, neighbours: int) -> Tensor:
    """w (B, B) of features z (B, D) of length 1."""
    if kind == "linear":
        return z @ z.T
    # Without the shortcut by products, whose rounding shows at small distances.
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "rbf":
        farthest = distance.topk(min(neighbours, len(z)), largest=False).values[:, -1]
        # Only a batch of one, or of equal images, has s = 0: all of it is near.
        s = farthest.mean().clamp_min(torch.finfo(z.dtype).tiny ** 0.5)
        return (-(distance**2) / (2.0 * s**2)).exp()
    nearest = distance.topk(min(neighbours + 1, len(z)), largest=False).indices[:, 1:]
    return torch.zeros_like(distance).scatter_(1, nearest, 1.0)


def assign(q: Tensor, w: Tensor, steps: int) -> Tensor:
    """log Y (B, K) from the probabilities q (B, K) and the affinities w (B, B)."""
    log_q = (q + 1e-10).log()
    log_y = F.log_softmax(log_q, dim=1)
    before = float("inf")
    for step in range(steps):
        pairwise = w @ log_y.exp()
        log_y = F.log_softmax(log_q + pairwise, dim=1)
        y = log_y.exp()
        # The host has to know when to stop; an iteration is some small products.
        energy = float((y * (log_y - log_q - pairwise)).sum())
        if step > 1 and abs(energy - before) <= 1e-8 * abs(before):
            break
        before = energy
    return log_y
