"""The choice of reliable and diverse samples of EATA (arXiv:2204.02610), which ETA and RDumb share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .losses import entropy


def reliable_entropy(
    logits: Tensor, average: Tensor | None, e0: float, epsilon: float
) -> tuple[Tensor | None, Tensor | None]:
    """The weighted entropy of the chosen samples of a batch, and the new average prediction.

    With p = softmax(logits), (B, K), H its entropy, E0 = `e0` in nats and m^{t-1} = `average` (K,) (Eqs. 3 to 6):

        S = {b : H_b < E0 and |cos(p_b, m^{t-1})| < epsilon}        no second condition where the average is None
        L = (1/|S|) sum_{b in S} exp(E0 - H_b) H_b                  the weight is a constant
        m^t = 0.9 m^{t-1} + 0.1 mean_{b in S} p_b                   the mean alone where the average was None

    Returns (None, `average`) where S is empty.
    """
    h = entropy(logits)
    certainty = h.detach()
    chosen = certainty < e0
    p = logits.detach().softmax(dim=1)
    if average is not None:
        chosen &= F.cosine_similarity(average.unsqueeze(0), p, dim=1).abs() < epsilon
    count = chosen.sum()
    # The algorithm takes no step without samples: the host has to know.
    if not bool(count):
        return None, average
    loss = (torch.where(chosen, (e0 - certainty).exp(), 0.0) * h).sum() / count
    mean = chosen.to(p.dtype) @ p / count
    return loss, mean if average is None else 0.9 * average + 0.1 * mean
