"""Self-distillation in generations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.rounds import train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

NEAR = 5
"""How many places before the true one count as it, and one fewer behind it."""


@register_method(
    "self-distillation-generations",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:2309.17134",
    outputs=("classes", "spans"),
)
@dataclass
class SelfDistillationGenerations(AdaptationMethod):
    """A model with its earlier self as teacher, in generations (Carrino et al. 2023, arXiv:2309.17134).

        first:   L = CE(f(x), y)
        r = 1, ..., R:   the teacher g is the model as it stands, the student goes on from it
            L = CE(f(x), y) + lambda c T^2 KL(softmax g(x)/T || softmax f(x)/T)
            c = mAP@k: the mean over the batch of 1/rank of y among the teacher's k most probable classes, 0 beyond

    c lowers the teacher's say where it is wrong. The paper distils the first and last tokens of answers of multilingual
    question answering: where the outputs are spans, CE, KL and c are each the mean of those of both, and the rank in c
    is that of the best place from five before the true one to four after it, as in the authors' code. Where they are
    classes, it is that of the class itself. T = 2, k = 10, the two losses added and forward KL are those of the code;
    `coefficient` "none" has c = 1. The teacher is in eval mode and sees the view that the student sees.

    Chosen here: R, shares of the budget, lambda = 1. Only labelled examples are used, as in the paper, whose first
    teacher is trained on English alone and which takes a new one after each epoch on pairs of languages.

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
        # First and last tokens are examples of their own: logits (B, 2, T) -> (2 B, T).
        logits, y = self.model(labeled.weak).flatten(0, -2), labeled.y.flatten().long()
        loss = F.cross_entropy(logits, y)
        if self.round == 0:
            return loss
        with torch.no_grad():
            of_teacher = self.guide(labeled.weak).flatten(0, -2)
        t = self.temperature
        q, log_p = (of_teacher / t).softmax(dim=1), F.log_softmax(logits / t, dim=1)
        apart = F.kl_div(log_p, q, reduction="batchmean")
        near = NEAR if labeled.y.dim() > 1 else 1
        c = reciprocal_ranks(of_teacher, y, self.k, near).mean() if self.coefficient == "map" else 1.0
        return loss + self.weight * c * t * t * apart

    def _begin(self) -> None:
        self.guide.load_state_dict(self.model.state_dict())


def reciprocal_ranks(logits: Tensor, classes: Tensor, k: int, near: int = 1) -> Tensor:
    """1/rank (B,) of `classes` (B,) among the largest `k` of `logits` (B, K), from 1; 0 beyond. Ties count as lost.

    With `near` n > 1 classes are places, and the best one from n before to n - 1 behind stands for each.
    """
    if near > 1:
        away = torch.arange(logits.shape[1], device=logits.device) - classes[:, None]
        own = logits.masked_fill((away < -near) | (away >= near), -torch.inf).amax(dim=1, keepdim=True)
    else:
        own = logits.gather(1, classes[:, None])
    rank = (logits >= own).sum(dim=1).to(logits.dtype)
    return torch.where(rank <= k, 1.0 / rank, torch.zeros_like(rank))
