"""Uncertainty-aware self-training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.dropout import dropout_before
from ..common.features import classifier_of, with_features
from ..common.rounds import candidates, draw, train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024


@register_method("ust", family="self-training", protocol="adaptation", paper="arXiv:2006.15315")
@dataclass
class Ust(AdaptationMethod):
    """Uncertainty-aware self-training (Mukherjee and Awadallah, NeurIPS 2020, arXiv:2006.15315).

        teacher:   L = CE(f(x), y)
        r = 1, ..., R, over the pool, not augmented:
            p_jt = softmax f(u_j; dropout mask t),  t = 1, ..., T;   yhat_j = argmax f(u_j), without dropout
            B_j = H(mean_t p_jt) - mean_t H(p_jt)                                                           (BALD)
            S: as many j of each predicted class, drawn with probability ~ 1 - B_j ("easy") or ~ B_j ("hard")
            w_j = -alpha log(Var_t p_jt[yhat_j] + 1e-10)
            L = CE(f(x), y) + lambda mean_(j in S) w_j CE(f(u_j), yhat_j)

    alpha = 0.1, lambda is `weight`. S is a share `selected` of the examples looked at, a quarter as 4,096 of 16,384 in
    the authors' code, divided by the number of classes; a class that is predicted for fewer is drawn with replacement.
    Dropout with the rate `dropout` stands before the last linear layer, in training and in the T passes, where layers
    of dropout that the model has act too.

    Differences to the authors' code: it takes the variance of the first class for w_j, which is that of yhat_j where
    there are two classes alone; it trains students on S alone, where the labelled examples stay in the loss here, so
    that weight and baseline have a meaning; T = 30 and R = 25 there are 10 and 3 here, for passes are counted; and the
    best of several teachers and rounds is not chosen on validation data. Chosen here, too: the teacher takes the share
    `teacher` of the budget, students go on from the weights before (as there), and a step takes `ratio` examples of S
    per labelled one, drawn with replacement, as weak views in one forward.

    Counted passes: 3 per labelled example and step of the teacher, then R (U (1 + T h) + 3 (1 + ratio) B S) for a pool
    of U and S steps of B labelled examples a round; h is the classifier's share of the model's parameters, or 1 where
    the model has dropout of its own and is passed T times. Pools of more than `candidates` are sampled. With
    lambda = 0 there are neither rounds nor dropout: this is `supervised`.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the pseudo-labelled loss")
    alpha: float = hyper(0.1, low=0.01, high=1.0, log=True, help="factor alpha of the confidence")
    passes: int = hyper(10, low=2, high=50, help="number T of passes with dropout")
    dropout: float = hyper(0.5, low=0.05, high=0.9, help="rate of the dropout before the classifier")
    sampling: str = hyper("easy", choices=("easy", "hard"), help="prefer examples that are sure, or that are not")
    selected: float = hyper(0.25, low=0.01, high=1.0, log=True, help="share of the examples looked at that is drawn")
    candidates: int = hyper(16384, low=16, high=1000000, log=True, help="examples of the pool that a round looks at")
    ratio: int = hyper(1, low=1, high=16, help="pseudo-labelled examples per labelled one in a step")
    rounds: int = hyper(3, low=1, high=25, help="number R of rounds")
    teacher: float = hyper(0.25, low=0.05, high=0.9, help="share of the budget of the teacher")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.chosen = torch.empty(0, dtype=torch.int64, device=view.device)
        self.targets = torch.empty(0, dtype=torch.int64, device=view.device)
        self.weights = torch.empty(0, device=view.device)

    def fit(self, view: View) -> None:
        rounds = self.rounds if self.weight > 0 and len(view.unlabeled) else 0
        train_in_rounds(self, self, rounds, self.teacher, self._label)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if self.weight == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        drawn = draw(len(self.chosen), self.ratio * len(labeled), self.view) if len(self.chosen) else self.chosen
        inputs = labeled.weak
        if len(drawn):
            u = self.view.task.weak(self.view.unlabeled[self.chosen[drawn]], self.view.generator)
            inputs = torch.cat([inputs, u])
        with dropout_before(classifier_of(self.model), self.dropout):
            logits = self.model(inputs)
        loss = F.cross_entropy(logits[: len(labeled)], labeled.y)
        if len(drawn) == 0:
            return loss
        of_pseudo = F.cross_entropy(logits[len(labeled) :], self.targets[drawn], reduction="none")
        return loss + self.weight * (self.weights[drawn] * of_pseudo).mean()

    @torch.no_grad()
    def _label(self) -> None:
        """S as places in the pool `chosen` (S,), their labels `targets` (S,) and `weights` (S,)."""
        view = self.view
        places = candidates(view, self.candidates)
        parts = [self._predictions(view.unlabeled[part]) for part in torch.split(places, _LABELLING_BATCH)]
        classes = torch.cat([logits.argmax(dim=1) for logits, _ in parts])
        sampled = torch.cat([samples for _, samples in parts], dim=1)
        uncertain = bald(sampled)
        chance = (1.0 - uncertain if self.sampling == "easy" else uncertain).clamp_min(0.0)
        each = int(self.selected * len(places)) // view.n_classes
        rows = balanced(classes, chance, view.n_classes, max(each, 1), view.generator)
        variance = sampled[:, rows, classes[rows]].var(dim=0, correction=0)
        self.chosen, self.targets = places[rows], classes[rows]
        self.weights = -self.alpha * (variance + 1e-10).log()

    def _predictions(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) in eval mode, and T probabilities (T, B, K) under dropout."""
        self.model.eval()
        head = classifier_of(self.model)
        logits, features = with_features(self.model, inputs)
        own = [module for module in self.model.modules() if isinstance(module, _DropoutNd) and module.p > 0]
        for module in own:
            module.train()

        def passes() -> Iterator[Tensor]:
            with dropout_before(head, self.dropout):
                for _ in range(self.passes):
                    yield self.model(inputs) if own else head(features.to(head.weight.dtype))

        return logits, torch.stack([sample.softmax(dim=1) for sample in passes()])


def bald(probabilities: Tensor) -> Tensor:
    """H(mean_t p_t) - mean_t H(p_t) of T samples (T, N, K) -> (N,), in nats: what is not known of the model."""
    of_mean, of_each = probabilities.mean(dim=0), torch.special.entr(probabilities).sum(dim=2)
    result: Tensor = torch.special.entr(of_mean).sum(dim=1) - of_each.mean(dim=0)
    return result


def balanced(classes: Tensor, chance: Tensor, n_classes: int, each: int, generator: torch.Generator) -> Tensor:
    """Places (S,) of `each` examples of every class, drawn with probabilities proportional to `chance` (N,).

    `classes` (N,). Drawn without replacement, except in classes with fewer than `each` possible examples; classes
    without one are left out.
    """
    parts = []
    for number in range(n_classes):
        members = torch.nonzero((classes == number) & (chance > 0)).flatten()
        if len(members):
            drawn = torch.multinomial(chance[members], each, replacement=len(members) < each, generator=generator)
            parts.append(members[drawn])
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=classes.device)
