"""Scores of a predictor that need no label, for choosing among the points of a run.

`entropy` is the mean entropy of the predictions, in nats. `transfer_score` is that of Yang et al. (2024, "Can We
Evaluate Domain Adaptation Models Without Target-Domain Labels?", arXiv:2305.18712):

    TS = H + M / ln K - U

H, the Hopkins statistic of the features, says how far they are from evenly spread (1/2 when they are, 1 when they
stand in tight clusters); M = H(mean p) - mean H(p) is the mutual information of input and prediction; U is the mean
squared difference, in radians, between the angles of the classifier's weight vectors and the one angle
arccos(-1 / (K - 1)) that K vectors spread evenly have. The authors' release takes M batch by batch and averages.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bundle import Array
from .features import forward_with_features, last_linear

_HOPKINS_SHARE = 0.05
"""Of the features, as many are compared with their neighbours (the release's value)."""


def outputs_with_features(model: nn.Module, inputs: Tensor, batch: int = 1024) -> tuple[Tensor, Tensor | None]:
    """Outputs float32 (N, ...) of `model` for `inputs` (N, ...), and what its classifier reads (N, D), if it has one.

    At most `batch` inputs pass at a time. Call it without gradients and with the model in eval mode.
    """
    parts = [forward_with_features(model, inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    seen = [part[1] for part in parts if part[1] is not None]
    return torch.cat([part[0] for part in parts]).float(), torch.cat(seen) if seen else None


def label_free_scores(
    model: nn.Module, logits: Tensor, features: Tensor | None, draw: np.random.Generator
) -> dict[str, float]:
    """`entropy` of logits (N, K) and, where `model` ends in a linear classifier of these features, `transfer_score`.

    A score that is not finite is left out.
    """
    log_p = F.log_softmax(logits.double(), dim=1)
    mean_entropy = float(-(log_p.exp() * log_p).sum(dim=1).mean())
    scores = {"entropy": mean_entropy}
    classifier = last_linear(model)
    if (
        classifier is not None
        and features is not None
        and len(features) == len(logits)
        and classifier.out_features == logits.shape[1] > 1
    ):
        mean_p = log_p.exp().mean(dim=0)
        information = float(-torch.special.xlogy(mean_p, mean_p).sum()) - mean_entropy
        hopkins = hopkins_statistic(features.double().cpu().numpy(), draw)
        spread = angle_spread(classifier.weight.detach().double())
        scores["transfer_score"] = hopkins + information / math.log(logits.shape[1]) - spread
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def hopkins_statistic(features: Array, draw: np.random.Generator) -> float:
    """u / (u + w) of features (N, D): summed distances to the nearest feature, u of points drawn evenly from the
    features' bounding box, w of as many features themselves.

    NaN when all features are equal, one is not finite, or N < 2.
    """
    # Seconds to import, and only this protocol asks for it: its campaigns have it in their fork server.
    from sklearn.neighbors import NearestNeighbors

    n = len(features)
    if n < 2 or not np.isfinite(features).all():
        return math.nan
    m = max(1, int(n * _HOPKINS_SHARE))
    even = draw.uniform(features.min(axis=0), features.max(axis=0), (m, features.shape[1]))
    own = features[draw.choice(n, m, replace=False)]
    neighbours = NearestNeighbors(n_neighbors=2).fit(features)
    u = neighbours.kneighbors(even)[0][:, 0].sum()
    w = neighbours.kneighbors(own)[0][:, 1].sum()
    return float(u / (u + w)) if u + w > 0 else math.nan


def angle_spread(weight: Tensor) -> float:
    """Mean squared difference between the angles of the rows of `weight` (K, D), K > 1, and arccos(-1 / (K - 1))."""
    k = len(weight)
    unit = F.normalize(weight, dim=1)
    cosines = (unit @ unit.T).clamp(-1, 1)[~torch.eye(k, dtype=torch.bool, device=weight.device)]
    return float((cosines.acos() - math.acos(-1 / (k - 1))).square().mean())
