"""Class prototypes: means of features by class, and what the distances from them say."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_means(features: Tensor, classes: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Features (B, D) by `classes` (B,): their means (K, D), 0 for absent classes, and which are present (K, 1)."""
    member = F.one_hot(classes, n_classes).to(features.dtype).T
    count = member.sum(dim=1, keepdim=True)
    return member @ features / count.clamp_min(1), count > 0


def prototype_weights(features: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """softmax_k(-||h_b - eta_k|| / temperature): features (B, D), prototypes (K, D) -> (B, K)."""
    # The way over matrix products cancels digits of small distances.
    distances = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return (-distances / temperature).softmax(dim=1)
