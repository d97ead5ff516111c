"""HAST."""

from __future__ import annotations

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


@register_method("hast", family="self-training", protocol="adaptation", paper="arXiv:2406.09206")
@dataclass
class Hast(AdaptationMethod):
    """Hard-label neighbourhood-regularised self-training (Schroeder and Heyer, EMNLP 2024, arXiv:2406.09206).

        teacher:   L = CE(f(x), y)
        r = 1, ..., R, over the pool, in eval mode, not augmented:
            yhat_j = argmax_k p_jk,  p_j = softmax f(u_j),  v_j = share of the k - 1 nearest u_i with yhat_i = yhat_j
            P = {j : v_j > 1/2 and max_k p_jk > 1/2}
            n_c = |{j in P : yhat_j = c}|,  n = floor(|P| / K),  alpha_c = 10 sigma((n - n_c) / n_c)
            w_j = beta alpha_(yhat_j),  W = |X| + sum_(j in P) w_j
            L = (1/W) (sum_i CE(f(x_i), y_i) + sum_(j in P) w_j CE(f(u_j), yhat_j))

    X are the labelled examples, beta is `weight`. Neighbours are the most similar by the cosine of the features, which
    are the input of the model's last linear layer; the example itself, the first of k = 15 in the authors' code, has no
    vote. Constants, filters and weights are those of that code, and one round; it has class weights and beta as options
    that are off and 1 by default. Its rounds after the first keep the labels of the rounds before; here each labels the
    whole pool anew.

    Chosen here: a step takes `ratio` examples of P per labelled one, drawn with replacement, so that both sums are
    estimated by means over batches; the teacher takes the share `teacher` of the budget and the student goes on from
    its weights, as in the authors' code; examples pass as weak views, labelled and unlabelled in one forward; no query
    strategy buys labels.

    Counted passes: 3 per labelled example and step of the teacher, then R (U + 3 (1 + ratio) B S) for a pool of U and S
    steps of B labelled examples a round; pools of more than `candidates` are sampled. With beta = 0 there are no
    rounds: this is `supervised`.
    """

    weight: float = hyper(0.1, low=0.0, high=1.0, help="weight beta of a pseudo-label relative to a label")
    class_weights: bool = hyper(True, choices=(True, False), help="whether rare pseudo-labels weigh more, by alpha")
    neighbours: int = hyper(15, low=2, high=50, help="number k of neighbours, the example itself included")
    agreement: float = hyper(0.5, low=0.5, high=1.0, help="share of neighbours above which a label is kept")
    confidence: float = hyper(0.5, low=0.0, high=1.0, help="probability above which a label is kept")
    candidates: int = hyper(16384, low=16, high=1000000, log=True, help="examples of the pool that a round looks at")
    ratio: int = hyper(7, low=1, high=16, help="pseudo-labelled examples per labelled one in a step")
    rounds: int = hyper(1, low=1, high=10, help="number R of rounds")
    teacher: float = hyper(0.25, low=0.05, high=0.9, help="share of the budget of the teacher")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.chosen = torch.empty(0, dtype=torch.int64, device=view.device)
        self.targets = torch.empty(0, dtype=torch.int64, device=view.device)
        self.weights = torch.empty(0, device=view.device)
        self.share = 1.0

    def fit(self, view: View) -> None:
        rounds = self.rounds if self.weight > 0 and len(view.unlabeled) else 0
        train_in_rounds(self, self, rounds, self.teacher, self._label)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(self.chosen) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        drawn = draw(len(self.chosen), self.ratio * len(labeled), self.view)
        u = self.view.task.weak(self.view.unlabeled[self.chosen[drawn]], self.view.generator)
        logits = self.model(torch.cat([labeled.weak, u]))
        of_pseudo = F.cross_entropy(logits[len(labeled) :], self.targets[drawn], reduction="none")
        own = (self.weights[drawn] * of_pseudo).mean()
        return self.share * F.cross_entropy(logits[: len(labeled)], labeled.y) + (1.0 - self.share) * own

    @torch.no_grad()
    def _label(self) -> None:
        """P as places in the pool `chosen` (P,), their labels `targets` (P,) and `weights` (P,), of mean 1.

        `share` is |X| / W, the part of the labelled examples in the loss.
        """
        view, n_labeled = self.view, len(self.view.labels)
        self.model.eval()
        places = candidates(view, self.candidates)
        parts = [with_features(self.model, view.unlabeled[part]) for part in torch.split(places, _LABELLING_BATCH)]
        logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
        probabilities = logits.softmax(dim=1)
        keep = agreeing(features, probabilities, self.neighbours, self.agreement, self.confidence)
        self.chosen, self.targets = places[keep], probabilities[keep].argmax(dim=1)
        weights = torch.ones(len(self.chosen), dtype=logits.dtype, device=view.device)
        if self.class_weights:
            weights = class_weights(self.targets, view.n_classes).to(logits.dtype)
        total = self.weight * float(weights.sum())
        self.share = n_labeled / (n_labeled + total)
        self.weights = weights / weights.mean() if len(weights) else weights


def agreeing(features: Tensor, probabilities: Tensor, neighbours: int, agreement: float, confidence: float) -> Tensor:
    """Which examples (N,) have a prediction that is sure and that most of their neighbours share.

    `features` (N, D), `probabilities` (N, K). Kept are those with max_k p_k > `confidence` whose class more than
    `agreement` of the `neighbours` - 1 other examples with the most similar features (by cosine) are predicted to have.
    """
    top, classes = probabilities.max(dim=1)
    unit = F.normalize(features.float(), dim=1)
    n, nearest = len(unit), min(neighbours - 1, len(unit) - 1)
    if nearest < 1:
        return torch.zeros(n, dtype=torch.bool, device=unit.device)
    votes = []
    for rows in torch.split(torch.arange(n, device=unit.device), _LABELLING_BATCH):
        similar = unit[rows] @ unit.T
        similar[torch.arange(len(rows), device=unit.device), rows] = -torch.inf
        found = similar.topk(nearest, dim=1).indices
        votes.append((classes[found] == classes[rows, None]).sum(dim=1))
    return (torch.cat(votes) > agreement * nearest) & (top > confidence)


def class_weights(classes: Tensor, n_classes: int) -> Tensor:
    """alpha (N,) = 10 sigma((n - n_c) / n_c) of `classes` (N,): n_c of the N have class c, n = floor(N / K)."""
    counts = torch.bincount(classes, minlength=n_classes)
    expected = len(classes) // n_classes
    return (10.0 * torch.sigmoid((expected - counts) / counts.clamp_min(1).double()))[classes]
