"""Future self-training, wide."""

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
from ..common.ema import ema_update
from ..common.future import future_loss, learning_rate, put_back, teacher_of, virtual_optimizer, virtual_step

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "fst-wide",
    family="mean-teacher",
    protocol="adaptation",
    paper="arXiv:2209.06993",
    needs=("strong-augmentation",),
)
@dataclass
class FstWide(AdaptationMethod):
    """A teacher that follows the mean of K futures of one step each (Du et al., NeurIPS 2022, FST-W).

    "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation", arXiv:2209.06993. In step t, with
    L, w, tau and m_t of `fst-deep`, student theta, teacher phi, and batches 0, ..., K:

        k = 1, ..., K:  theta_k = theta - lr grad L_k(theta, phi)                       one virtual step on batch k
        phi <- m_t phi + (1 - m_t) (1/K) sum_k theta_k
        theta <- theta - lr grad L_0(theta, phi)                                        the real step, on batch 0
        phi <- m_t phi + (1 - m_t) theta

    K = 3, tau, m and the second update of phi are those of the authors' release. phi is the predictor.

    A step draws K + 1 times as many unlabelled examples, which are the batches; the labelled examples of the virtual
    steps are drawn by the method with replacement. For all else see `fst-deep`: classification, moments of the virtual
    steps, running statistics.

    Counted passes per step and labelled example, r = `ratio`: (K + 1) (3 + 4 r). With lambda = 0 there is no teacher.
    """

    ahead: int = hyper(3, low=1, high=7, help="K virtual students")
    momentum: float = hyper(0.999, low=0.5, high=0.9999, help="m, of the teacher")
    threshold: float = hyper(0.968, low=0.0, high=1.0, help="tau")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the unlabelled loss")
    ratio: int = hyper(1, low=1, high=4, help="unlabelled examples per labelled one, in each of the K + 1 batches")

    def unlabeled_ratio(self) -> int:
        return self.ratio * (self.ahead + 1) if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.teacher = teacher_of(model) if self.weight > 0 else None
        self.virtual = virtual_optimizer(model, view.recipe)
        self.t = 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if self.teacher is None or len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        self.t += 1
        lr = learning_rate(self.view, self.lr_scale)
        weak, strong = (part.chunk(self.ahead + 1) for part in (unlabeled.weak, unlabeled.strong))
        with put_back(self.model) as before:
            parameters: list[Tensor] = list(self.model.parameters())
            total = [torch.zeros_like(parameter) for parameter in before]
            for k in range(1, self.ahead + 1):
                virtual_step(self.virtual, self._loss(self.teacher, self._drawn(len(labeled)), weak[k], strong[k]), lr)
                with torch.no_grad():
                    torch._foreach_add_(total, parameters, alpha=1.0 / self.ahead)
                    torch._foreach_copy_(parameters, before)
        torch._foreach_lerp_(list(self.teacher.parameters()), total, 1.0 - self._momentum())
        return self._loss(self.teacher, (labeled.weak, labeled.y), weak[0], strong[0])

    def after_step(self) -> None:
        if self.teacher is not None and self.t:
            ema_update(self.teacher, self.model, self._momentum())

    def _momentum(self) -> float:
        return min(1.0 - 1.0 / (self.t + 1), self.momentum)

    def _drawn(self, n: int) -> tuple[Tensor, Tensor]:
        """Weak views of n labelled examples drawn with replacement, and their classes."""
        view = self.view
        chosen = torch.randint(len(view.labeled), (n,), generator=view.generator, device=view.device)
        return view.task.weak(view.labeled[chosen], view.generator), view.labels[chosen]

    def _loss(self, teacher: nn.Module, examples: tuple[Tensor, Tensor], weak: Tensor, strong: Tensor) -> Tensor:
        return future_loss(self.model, teacher, examples, weak, strong, self.threshold, self.weight)

    def predictor(self) -> nn.Module | None:
        return self.teacher
