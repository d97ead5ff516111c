"""Self-distillation in generations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import AdaptationMethod, Batch, LabeledBatch
from ...suite.registry import register_method
from ..common.rounds import train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_loop import View


@register_method(
    "self-distillation-generations", family="self-training", protocol="adaptation", paper="arXiv:2309.17134"
)
@dataclass
class SelfDistillationGenerations(AdaptationMethod):
    """A model with its earlier self as teacher, in generations (Carrino et al. 2023, arXiv:2309.17134).

        first:   L = CE(f(x), y)
        r = 1, ..., R:   the teacher g is the model as it stands, the student goes on from it
            L = CE(f(x), y) + lambda c T^2 KL(softmax g(x)/T || softmax f(x)/T)
            c = mAP@k: the mean over the batch of 1/rank of y among the teacher's k most probable classes, 0 beyond

    c lowers the teacher's say where it is wrong. The paper distils the starts and ends of answers of multilingual
    question answering, where the ranks are those of places within five words of the true one; here classes stand in
    their place. T = 2, k = 10, the two losses added and forward KL are those of the authors' code; `coefficient`
    "none" has c = 1. The teacher is in eval mode and sees the view that the student sees.

    Chosen here: R, shares of the budget, lambda = 1. Only labelled examples are used, as in the paper.

    Counted passes: 3 per labelled example and step of the first training, then 4. With lambda = 0 there are no
    generations: this is `supervised`.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the teacher")
    temperature: float = hyper(2.0, low=0.5, high=10.0, help="temperature T")
    coefficient: str = hyper("map", choices=("map", "none"), help="whether the teacher counts as much as it is right")
    k: int = hyper(10, low=1, high=100, help="how many of the teacher's classes the coefficient looks at")
    generations: int = hyper(2, low=1, high=10, help="number R of students")
    teacher: float = hyper(0.4, low=0.05, high=0.9, help="share of the budget of the first model")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.guide = copy.deepcopy(model).requires_grad_(False).eval()

    def fit(self, view: View) -> None:
        train_in_rounds(self, self, self.generations if self.weight > 0 else 0, self.teacher, self._begin)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        logits = self.model(labeled.weak)
        loss = F.cross_entropy(logits, labeled.y)
        if self.round == 0:
            return loss
        with torch.no_grad():
            of_teacher = self.guide(labeled.weak)
        t = self.temperature
        q, log_p = (of_teacher / t).softmax(dim=1), F.log_softmax(logits / t, dim=1)
        apart = F.kl_div(log_p, q, reduction="batchmean")
        c = reciprocal_ranks(of_teacher, labeled.y, self.k).mean() if self.coefficient == "map" else 1.0
        return loss + self.weight * c * t * t * apart

    def _begin(self) -> None:
        self.guide.load_state_dict(self.model.state_dict())


def reciprocal_ranks(logits: Tensor, classes: Tensor, k: int) -> Tensor:
    """1/rank (B,) of `classes` (B,) among the largest `k` of `logits` (B, K), from 1; 0 beyond. Ties count as lost."""
    own = logits.gather(1, classes[:, None])
    rank = (logits >= own).sum(dim=1).to(logits.dtype)
    return torch.where(rank <= k, 1.0 / rank, torch.zeros_like(rank))
