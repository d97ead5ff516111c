"""The losses and the prior correction of ROID (arXiv:2306.00650), which CMF shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .losses import entropy
from .reflected_view import reflected_view


def weighted_loss(
    model: nn.Module,
    images: Tensor,
    logits: Tensor,
    average: Tensor,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """sum_{b in S} w_b (SLR(y_b) + SCE(f(x~_b), y_b)): a scalar, to be divided by the size of a batch.

    `logits` (B, K) are y = f(x) of `images` x (B, 3, H, W) under `model` f; w and S are those of
    `certainty_and_diversity`, x~ is one `reflected_view` of the images of S. Gradients flow through y in both losses.
    Without a `generator` the view and its loss are left out.
    """
    weights, kept = certainty_and_diversity(logits.detach(), average, temperature)
    losses = soft_likelihood_ratio(logits)
    if generator is not None:
        # The view holds S alone, whose statistics batch norm uses: the host has to know S.
        (chosen,) = torch.nonzero(kept, as_tuple=True)
        view = model(reflected_view(images[chosen], generator))
        losses = losses.index_add(0, chosen, mutual_cross_entropy(view, logits[chosen]))
    return (weights * losses).sum()


@torch.no_grad()
def certainty_and_diversity(logits: Tensor, average: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Weights (B,) of the samples of a batch, and which of them (B,) are diverse enough to be kept.

    With p = softmax(logits), (B, K), pbar = `average` (K,), H the entropy, and u, v scaled to [0, 1] over the batch:

        u_b = 1 - cos(p_b, pbar)        v_b = -H_b        w_b = exp(u_b v_b / temperature),  kept where u_b >= mean u

    Weights of samples that are not kept are 0. At least one is kept.
    """
    diversity = _to_unit(1.0 - F.cosine_similarity(average.unsqueeze(0), logits.softmax(dim=1), dim=1))
    certainty = _to_unit(-entropy(logits))
    kept = diversity >= diversity.mean()
    return torch.where(kept, (diversity * certainty / temperature).exp(), 0.0), kept


def _to_unit(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    # In a batch of equal values, such as a single one, nothing is to be told apart: all become 0.
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """-sum_k p_k log(p_k / (1 - p_k) + 1e-5), p = softmax(logits) clipped to 0.99: (B, K) -> (B,)."""
    p = logits.softmax(dim=1).clamp(max=0.99)
    return -(p * (p / (1.0 - p) + 1e-5).log()).sum(dim=1)


def mutual_cross_entropy(a: Tensor, b: Tensor) -> Tensor:
    """-(1/2) sum_k (p_bk log p_ak + p_ak log p_bk) of logits a and b: (B, K), (B, K) -> (B,), a gradient in both."""
    log_a, log_b = F.log_softmax(a, dim=1), F.log_softmax(b, dim=1)
    return -0.5 * (log_b.exp() * log_a + log_a.exp() * log_b).sum(dim=1)


@torch.no_grad()
def correct_prior(logits: Tensor) -> Tensor:
    """Multiply the logits (B, K) by the smoothed prior q of the batch, as the release of ROID does.

        p = mean_b softmax(logits_b)    gamma = max(1/B, 1/K) / max_k p_k    q_k = (p_k + gamma) / (1 + gamma K)

    The paper weighs probabilities by the prior. The release, and therefore this, multiplies logits, which depends
    on their arbitrary offset and scales negative ones the wrong way.
    """
    batch, classes = logits.shape
    prior = logits.softmax(dim=1).mean(dim=0)
    smooth = max(1.0 / batch, 1.0 / classes) / prior.max()
    return logits * ((prior + smooth) / (1.0 + smooth * classes))
