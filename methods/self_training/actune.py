"""AcTune."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.features import with_features
from ..common.rounds import candidates, draw, train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024


@register_method("actune", family="self-training", protocol="adaptation", paper="arXiv:2112.08787")
@dataclass
class AcTune(AdaptationMethod):
    """Self-training of AcTune (Yu et al., NAACL 2022, arXiv:2112.08787): what a memory of predictions is sure of.

        teacher:   L = CE(f(x), y)
        r = 1, ..., R, over the pool, in eval mode, not augmented:
            p_j = softmax f(u_j),  e_j = H(p_j) / ln K,  m = m_L + (r - 1) / R (m_H - m_L)
            q_j <- m p_j + (1 - m) q_j,  q_j = p_j at first                                             (memory)
            yhat_j = argmax_k q_jk,  S = {j : max_k q_jk > gamma}
            "memory":    P = the share `selected` of the pool with the smallest H(q_j), as far as it is in S
            "regions":   clusters C_1, ..., C_K of the features of S, by k-means with weights e_j;
                         P += the b examples with the smallest e_j of each of the M clusters with the smallest
                              mean_(j in C) e_j + beta H(share of each yhat in C)
            L = CE(f(x), y) + lambda mean_(j in P) CE(f(u_j), yhat_j)

    In the paper clusters choose what to ask, those of the largest value, and the memory what to train on, over the
    rounds of active learning. Here the task asks, and one fit has rounds of its own. "memory" is the selection of the
    authors' code (its weights of the memory 0.9 to 1, threshold 0.7, lambda 0.5). "regions" is how Schroeder and Heyer
    (2024) turn regions into a selection for self-training, with its constants, the defaults: examples once chosen keep
    their labels and leave the pool. lambda is `weight`, gamma `confidence`, K `regions`, M `sampled`, b `each`.

    Chosen here: the teacher takes the share `teacher` of the budget, students go on from the weights before; what a
    region lacks of b examples the next one gives; a step takes `ratio` examples of P per labelled one, drawn with
    replacement, as weak views in one forward. Features are the input of the last linear layer, scaled to length 1.

    Counted passes: 3 per labelled example and step of the teacher, then R (U + 3 (1 + ratio) B S) for a pool of U and S
    steps of B labelled examples a round; pools of more than `candidates` are sampled once. With lambda = 0 there are no
    rounds: this is `supervised`.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the pseudo-labelled loss")
    selection: str = hyper("regions", choices=("regions", "memory"), help="how P is chosen of what is sure")
    confidence: float = hyper(0.6, low=0.0, high=1.0, help="probability gamma above which a label is sure")
    momentum_low: float = hyper(0.8, low=0.0, high=1.0, help="weight m_L of new predictions in the first round")
    momentum_high: float = hyper(0.9, low=0.0, high=1.0, help="weight m_H towards which it goes")
    regions: int = hyper(10, low=2, high=100, help="number K of clusters")
    sampled: int = hyper(5, low=1, high=100, help="number M of clusters that are drawn from")
    each: int = hyper(5, low=1, high=1000, log=True, help="examples b of each of them")
    diversity: float = hyper(0.5, low=0.0, high=5.0, help="weight beta of the mixture of classes in a cluster")
    selected: float = hyper(0.25, low=0.01, high=1.0, log=True, help="share of the pool that the memory selects")
    candidates: int = hyper(16384, low=16, high=1000000, log=True, help="examples of the pool that are looked at")
    ratio: int = hyper(1, low=1, high=16, help="pseudo-labelled examples per labelled one in a step")
    rounds: int = hyper(3, low=1, high=10, help="number R of rounds")
    teacher: float = hyper(0.25, low=0.05, high=0.9, help="share of the budget of the teacher")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.places = torch.empty(0, dtype=torch.int64, device=view.device)
        self.memory = torch.empty(0, view.n_classes, device=view.device)
        self.chosen = torch.empty(0, dtype=torch.int64, device=view.device)
        self.targets = torch.empty(0, dtype=torch.int64, device=view.device)

    def fit(self, view: View) -> None:
        rounds = self.rounds if self.weight > 0 and len(view.unlabeled) else 0
        train_in_rounds(self, self, rounds, self.teacher, self._label)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(self.chosen) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        drawn = draw(len(self.chosen), self.ratio * len(labeled), self.view)
        u = self.view.task.weak(self.view.unlabeled[self.chosen[drawn]], self.view.generator)
        logits = self.model(torch.cat([labeled.weak, u]))
        own = F.cross_entropy(logits[len(labeled) :], self.targets[drawn])
        return F.cross_entropy(logits[: len(labeled)], labeled.y) + self.weight * own

    @torch.no_grad()
    def _label(self) -> None:
        """P as places in the pool `chosen` (P,), and their labels `targets` (P,); `memory` (C, K) of all `places`."""
        view = self.view
        self.model.eval()
        if len(self.places) == 0:
            self.places = candidates(view, self.candidates)
        parts = [with_features(self.model, view.unlabeled[part]) for part in torch.split(self.places, _LABELLING_BATCH)]
        logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
        p = logits.softmax(dim=1)
        m = self.momentum_low + (self.round - 1) / self.rounds * (self.momentum_high - self.momentum_low)
        self.memory = m * p + (1.0 - m) * self.memory if len(self.memory) else p
        top, classes = self.memory.max(dim=1)
        if self.selection == "memory":
            rows = surest(self.memory, int(self.selected * len(p)))
            rows = rows[top[rows] > self.confidence]
            self.chosen, self.targets = self.places[rows], classes[rows]
            return
        free = (top > self.confidence) & ~torch.isin(self.places, self.chosen)
        rows = torch.nonzero(free).flatten()
        if len(rows) >= self.regions:
            seed = int(torch.randint(2**31, (1,), generator=view.generator, device=view.device))
            rows = rows[self._from_regions(features[rows], classes[rows], normalised_entropy(p[rows]), seed)]
        self.chosen = torch.cat([self.chosen, self.places[rows]])
        self.targets = torch.cat([self.targets, classes[rows]])

    def _from_regions(self, features: Tensor, classes: Tensor, uncertainty: Tensor, seed: int) -> Tensor:
        region = clusters(features, uncertainty, self.regions, seed)
        return from_regions(region, classes, uncertainty, self.sampled, self.each, self.diversity)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """H(p) / ln K (N,) of probabilities (N, K)."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=1) / math.log(probabilities.shape[1])
    return entropy


def surest(probabilities: Tensor, size: int) -> Tensor:
    """Places (size,) of the probabilities (N, K) with the smallest entropies, smallest first."""
    entropy = torch.special.entr(probabilities).sum(dim=1)
    return torch.sort(entropy, stable=True).indices[:size]


def clusters(features: Tensor, weights: Tensor, number: int, seed: int) -> Tensor:
    """The cluster (N,) of each of the features (N, D), scaled to length 1, by k-means with `weights` (N,).

    Where all weights are 0, as those of predictions that are 1 in floating point, all examples count alike.
    """
    from sklearn.cluster import KMeans

    unit = F.normalize(features.double(), dim=1).cpu().numpy()
    means = KMeans(n_clusters=number, n_init=1, random_state=seed)
    shares = weights.double().cpu().numpy()
    found = means.fit_predict(unit, sample_weight=shares if shares.any() else None)
    return torch.from_numpy(found).to(features.device)


def from_regions(
    region: Tensor, classes: Tensor, uncertainty: Tensor, sampled: int, each: int, diversity: float
) -> Tensor:
    """Places of the `each` least uncertain examples of each of the `sampled` regions of the smallest value.

    `region` (N,), `classes` (N,), `uncertainty` (N,). The value of a region is its mean uncertainty plus `diversity`
    times the entropy of the shares of its classes. What a region lacks of `each` the next one gives.
    """
    number = int(region.max()) + 1
    values = []
    for cluster in range(number):
        members = region == cluster
        shares = torch.bincount(classes[members]).double() / members.sum().clamp_min(1)
        value = uncertainty[members].double().mean() + diversity * torch.special.entr(shares).sum()
        values.append(value if members.any() else torch.tensor(torch.inf, device=value.device, dtype=value.dtype))
    parts, wanted = [], 0
    for cluster in torch.sort(torch.stack(values), stable=True).indices[:sampled].tolist():
        wanted += each
        members = torch.nonzero(region == cluster).flatten()
        taken = members[torch.sort(uncertainty[members], stable=True).indices[:wanted]]
        wanted -= len(taken)
        parts.append(taken)
    return torch.cat(parts)
