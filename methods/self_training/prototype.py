"""Self-training on class prototypes."""

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
from ..common.augment import check_augment
from ..common.features import classifier_of, with_features
from ..common.prototypes import class_means, prototype_weights

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024


@register_method("prototype", family="self-training", protocol="adaptation", paper="arXiv:2301.08855")
@dataclass
class Prototype(AdaptationMethod):
    """Pseudo-labels corrected by the distances from class prototypes (Ge et al. 2023, ProKD, arXiv:2301.08855).

        teacher:   L = CE(f(x), y) over the share `teacher` of the budget
        once:      q_j = softmax f(u_j),  eta_k = mean of h(u_j) over argmax q_j = k     the whole pool, in eval mode
        a step:    omega_bk = softmax_k( -||h(u_b) - eta_k|| / tau )                      weak view, no gradient
                   y^_b     = argmax_k omega_bk q_bk
                   L        = CE(f(x), y) + lambda_u (1/B_u) sum_b CE(f(a(u_b)), y^_b)
                   eta_k   <- m eta_k + (1 - m) mean of h(u_b) over argmax f(u_b) = k     classes in the batch alone

    h are the features, what the classifier reads; q stays that of the teacher, and omega moves with the student: so
    self-training corrects its labels while it runs. ProKD trains its student further on the target by the samples'
    distances from prototypes. The combination above is that of ProDA (Zhang et al. 2021, arXiv:2101.10979), checked
    against its public code: soft labels of a warmed-up model times a softmax of distances, hard labels, prototypes as
    moving averages of features by predicted class, tau = 1. The equations of ProKD itself were not at hand.

    Left out, of ProKD: named entities (tokens become examples), distillation from a teacher across languages and the
    contrastive alignment of prototypes; of ProDA: the averaged network that gives h, its consistency of assignments,
    the symmetric loss and the regulariser. Chosen here: the student goes on from the teacher's weights with an
    optimiser and a schedule of its own; a class that the teacher never predicts starts at the mean of its labelled
    examples; m = 0.99 for budgets of some hundred steps (ProDA: 0.9999 per image); the labelled examples' view is weak,
    and so by default is a(u), from which label and prediction then both come.

    Counted passes: 3 per labelled example and step of the teacher, U + L once, then 3 (1 + v ratio) per labelled
    example and step, v = 2 with `augment="strong"` and 1 without. With lambda_u = 0 there is a teacher alone, which
    is `supervised`, bit by bit.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda_u of the unlabelled loss")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")
    teacher: float = hyper(0.5, low=0.05, high=0.9, help="share of the budget before there are labels")
    temperature: float = hyper(1.0, low=0.01, high=100.0, log=True, help="temperature tau of the distances")
    momentum: float = hyper(0.99, low=0.5, high=0.9999, help="what a prototype keeps in a step, m")
    augment: str = hyper(
        "weak",
        choices=("weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="trained view a of the unlabelled examples",
    )

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("prototype", self.augment, view)
        self.round, self.labelled = 0, False
        self.q = torch.empty(0, device=view.device)
        self.prototypes = torch.empty(0, device=view.device)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 and self.round > 0 else 0

    def fit(self, view: View) -> None:
        rounds = 1 if self.weight > 0 and len(view.unlabeled) else 0
        while self.round <= rounds:
            if self.round == 1 and not self.labelled:
                with view.meter.running():
                    self._label(view)
                self.labelled = True
            view.train(self, until=1.0 if self.round == rounds else self.teacher)
            self.round += 1

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        views = [labeled.weak, unlabeled.weak, *([unlabeled.strong] if self.augment == "strong" else [])]
        logits, features = with_features(self.model, torch.cat(views))
        own = slice(len(labeled), len(labeled) + len(unlabeled))
        h = features[own].detach().to(self.prototypes.dtype)
        labels = (prototype_weights(h, self.prototypes, self.temperature) * self.q[unlabeled.index]).argmax(dim=1)
        self._move(h, logits[own].argmax(dim=1))
        loss = F.cross_entropy(logits[: len(labeled)], labeled.y)
        return loss + self.weight * F.cross_entropy(logits[-len(unlabeled) :], labels)

    @torch.no_grad()
    def _label(self, view: View) -> None:
        """Probabilities q (U, K) of the pool and prototypes (K, D), by the model in eval mode."""
        self.model.eval()
        logits, h = self._pass(view.unlabeled)
        _, of_labeled = self._pass(view.labeled)
        self.q = logits.softmax(dim=1)
        start, _ = class_means(of_labeled, view.labels, view.n_classes)
        mean, met = class_means(h, logits.argmax(dim=1), view.n_classes)
        self.prototypes = torch.where(met, mean, start)

    def _pass(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        parts = [with_features(self.model, part) for part in torch.split(inputs, _LABELLING_BATCH)]
        logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
        weight = classifier_of(self.model).weight
        return logits.to(weight.dtype), features.to(weight.dtype)

    @torch.no_grad()
    def _move(self, h: Tensor, classes: Tensor) -> None:
        mean, met = class_means(h, classes, len(self.prototypes))
        self.prototypes = torch.where(met, torch.lerp(mean, self.prototypes, self.momentum), self.prototypes)
