"""VERIPS."""

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
from ..common.rounds import candidates, draw, train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024


@register_method("verips", family="self-training", protocol="adaptation", paper="-")
@dataclass
class Verips(AdaptationMethod):
    """Pseudo-labels that a second network confirms, which learns from labels alone (Gilhuber et al., ICDM 2022).

        teacher:   L = CE(f(x), y) + CE(g(x), y)                          g a second network, which sees labels alone
        r = 1, ..., R, over the pool, in eval mode, not augmented:
            p_j = softmax f(u_j),  yhat_j = argmax_k p_jk
            P = {j : H(p_j) / ln K <= lambda  and  argmax g(u_j) = yhat_j}
            L = (1/W) (sum_i CE(f(x_i), y_i) + beta sum_(j in P) CE(f(u_j), yhat_j)),  W = |X| + beta |P|

    lambda is `uncertainty`, beta is `weight`; X are the labelled examples. Of the paper ("VERIPS: Verified Pseudo-label
    Selection for Deep Active Learning") the abstract alone was at hand, which says what the verifier is. Candidates,
    verification and lambda are those of the code that Schroeder and Heyer (2024) released for their comparison, which
    trains f and g one after the other on the labels, has one round and beta = 1. Its margin score indexes the wrong
    axis and is left out; from the second round on its verifier sees the true labels of the pseudo-labelled examples,
    which it never does here.

    Chosen here: f and g are trained side by side, on two weak views of one batch, from two initialisations; teacher and
    verifier take the share `teacher` of the budget, and the student goes on from the teacher's weights; a step takes
    `ratio` examples of P per labelled one, drawn with replacement, as weak views in one forward.

    Counted passes: 6 per labelled example and step of the teacher, then R (2 U + 3 (1 + ratio) B S) for a pool of U and
    S steps of B labelled examples a round; pools of more than `candidates` are sampled. With beta = 0 there are neither
    rounds nor verifier: this is `supervised`.
    """

    weight: float = hyper(1.0, low=0.0, high=1.0, help="weight beta of a pseudo-label relative to a label")
    uncertainty: float = hyper(0.1, low=0.0, high=1.0, help="entropy lambda, in ln K, up to which a label counts")
    candidates: int = hyper(16384, low=16, high=1000000, log=True, help="examples of the pool that a round looks at")
    ratio: int = hyper(7, low=1, high=16, help="pseudo-labelled examples per labelled one in a step")
    rounds: int = hyper(1, low=1, high=10, help="number R of rounds")
    teacher: float = hyper(0.25, low=0.05, high=0.9, help="share of the budget of teacher and verifier")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        verified = self.weight > 0 and len(view.unlabeled) > 0
        self.verifier = view.new_model("verifier") if verified else None
        self.chosen = torch.empty(0, dtype=torch.int64, device=view.device)
        self.targets = torch.empty(0, dtype=torch.int64, device=view.device)
        self.share = 1.0

    def fit(self, view: View) -> None:
        train_in_rounds(self, self, self.rounds if self.verifier is not None else 0, self.teacher, self._label)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """In the first share of the budget the verifier is trained too."""
        groups = super().parameter_groups()
        if self.verifier is not None and self.round == 0:
            groups.append((list(self.verifier.parameters()), 1.0))
        return groups

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(self.chosen) == 0:
            loss = F.cross_entropy(self.model(labeled.weak), labeled.y)
            if self.verifier is not None and self.round == 0:
                self.verifier.train()
                loss = loss + F.cross_entropy(self.verifier(labeled.weak2), labeled.y)
            return loss
        drawn = draw(len(self.chosen), self.ratio * len(labeled), self.view)
        u = self.view.task.weak(self.view.unlabeled[self.chosen[drawn]], self.view.generator)
        logits = self.model(torch.cat([labeled.weak, u]))
        own = F.cross_entropy(logits[len(labeled) :], self.targets[drawn])
        return self.share * F.cross_entropy(logits[: len(labeled)], labeled.y) + (1.0 - self.share) * own

    @torch.no_grad()
    def _label(self) -> None:
        """P as places in the pool `chosen` (P,), and their labels `targets` (P,). `share` is |X| / W."""
        view, verifier = self.view, self.verifier
        assert verifier is not None
        self.model.eval()
        verifier.eval()
        places = candidates(view, self.candidates)
        batches = [view.unlabeled[part] for part in torch.split(places, _LABELLING_BATCH)]
        logits = torch.cat([self.model(batch) for batch in batches])
        of_verifier = torch.cat([verifier(batch) for batch in batches])
        keep = verified(logits.softmax(dim=1), of_verifier.argmax(dim=1), self.uncertainty)
        self.chosen, self.targets = places[keep], logits[keep].argmax(dim=1)
        self.share = len(view.labels) / (len(view.labels) + self.weight * len(self.chosen))


def verified(probabilities: Tensor, of_verifier: Tensor, uncertainty: float) -> Tensor:
    """Which predictions (N,) are sure and shared by the verifier.

    `probabilities` (N, K), `of_verifier` (N,) the verifier's classes. Sure is an entropy of at most `uncertainty` ln K.
    """
    entropy = torch.special.entr(probabilities).sum(dim=1) / math.log(probabilities.shape[1])
    kept: Tensor = (1.0 - entropy >= 1.0 - uncertainty) & (probabilities.argmax(dim=1) == of_verifier)
    return kept
