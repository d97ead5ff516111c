"""Mutual Mean-Teaching."""

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
from ..common.consistency import soft_cross_entropy
from ..common.ema import ema_update
from ..common.ramps import sigmoid
from ..common.waveblock import add_wave_blocks

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method("mutual-mean-teacher", family="mean-teacher", protocol="adaptation", paper="arXiv:2001.01526")
@dataclass
class MutualMeanTeacher(AdaptationMethod):
    """Two networks, each taught by the mean teacher of the other (Ge et al. 2020, arXiv:2001.01526).

    Students theta_1, theta_2 from different initial weights, their mean teachers phi_1, phi_2, and two weak views
    x_i, u_i of labelled and unlabelled examples, one for each pair:

        L = sum_i CE(f(x_i; theta_i), y)
            + lambda(t) sum_i [(1 - s) CE_eps(f(u_i; theta_i), y~) + s CE(f(u_i; theta_i), softmax f(u_j; phi_j))]
        phi_i <- alpha_k phi_i + (1 - alpha_k) theta_i    after step k, alpha_k = min(1 - 1 / k, alpha), j = 3 - i

    CE_eps smooths its labels by eps. s, eps, alpha and alpha_k are those of the authors' release; teachers are in
    training mode and keep running statistics of what they see themselves, as there. phi_1 is the predictor: the release
    picks the better of the two on labelled target data.

    `wave` > 1 is the WaveBlock form of "Attentive WaveBlock" (arXiv:2006.06525): before the last two stages of all four
    networks, in training, all but a random band of 30 % of the rows of each feature map is multiplied by `wave`, with a
    band of its own for each forward pass, so that the networks differ. Its attention modules are left out. The
    release uses 1.5.

    From re-identification to classification: y~ is the class of which the two teachers together are surest, where the
    paper clusters features once per epoch; the labelled examples, on which the paper trains before, stay in the
    loss; the triplet losses, whose positives are images of one person, and the reset of the classifier to cluster
    centres fall away. lambda rises to `weight` as exp(-5 (1 - t)^2) over the first `ramp` of the budget, because
    nothing was trained before.

    Counted passes per step and labelled example, r = `ratio`: 6 (1 + r) + 2 r. With lambda = 0 there is one network.
    """

    decay: float = hyper(0.999, low=0.9, high=0.9999, help="decay alpha of the teachers' weights")
    soft: float = hyper(0.5, low=0.0, high=1.0, help="share s of the other teacher's soft labels")
    smoothing: float = hyper(0.1, low=0.0, high=0.5, help="smoothing eps of hard pseudo-labels")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="final weight lambda of the unlabelled loss")
    ramp: float = hyper(0.4, low=0.0, high=1.0, help="share of the budget over which the weight rises")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")
    wave: float = hyper(1.0, low=1.0, high=3.0, asks=("convolutions",), help="rate of WaveBlock; 1 is without")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.students, self.teachers, self.updates = [model], [], 0
        if self.weight > 0:
            self.students.append(view.new_model("second"))
            self.teachers = [copy.deepcopy(student).requires_grad_(False).train() for student in self.students]
            for network in [*self.students, *self.teachers] if self.wave > 1 else []:
                add_wave_blocks(network, self.wave, 0.3, view.generator)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [
            ([parameter for parameter in student.parameters() if parameter.requires_grad], 1.0)
            for student in self.students
        ]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if not self.teachers or len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        views = ((labeled.weak, unlabeled.weak), (labeled.weak2, unlabeled.weak2))
        with torch.no_grad():
            targets = [teacher(u) for teacher, (_, u) in zip(self.teachers, views, strict=True)]
            hard = (targets[0].softmax(dim=1) + targets[1].softmax(dim=1)).argmax(dim=1)
        weight = self.weight * sigmoid(self.view.progress, self.ramp)
        loss = torch.zeros((), device=hard.device)
        for student, (x, u), target in zip(self.students, views, reversed(targets), strict=True):
            of_labeled, of_unlabeled = student.train()(torch.cat([x, u])).split([len(x), len(u)])
            own = (1.0 - self.soft) * F.cross_entropy(of_unlabeled, hard, label_smoothing=self.smoothing)
            own = own + self.soft * soft_cross_entropy(of_unlabeled, target).mean()
            loss = loss + F.cross_entropy(of_labeled, labeled.y) + weight * own
        return loss

    def after_step(self) -> None:
        self.updates += 1
        for teacher, student in zip(self.teachers, self.students, strict=False):
            ema_update(teacher, student, min(1.0 - 1.0 / self.updates, self.decay))

    def predictor(self) -> nn.Module | None:
        return self.teachers[0] if self.teachers else None
