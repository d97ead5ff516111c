"""Future self-training, deep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    "fst-deep",
    family="mean-teacher",
    protocol="adaptation",
    paper="arXiv:2209.06993",
    needs=("strong-augmentation",),
)
@dataclass
class FstDeep(AdaptationMethod):
    """A teacher that follows the student K steps into its future (Du et al., NeurIPS 2022, FST-D).

    "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation", arXiv:2209.06993. In step t, with
    student theta, teacher phi, labelled weak views x, and weak and strong views a(u), A(u) of unlabelled examples:

        theta~ <- theta
        K times: phi <- m_t phi + (1 - m_t) theta~,  theta~ <- theta~ - lr grad L(theta~, phi)          virtual steps
        phi <- m_t phi + (1 - m_t) theta~
        theta <- theta - lr grad L(theta, phi)                                                          the real step
        L(theta, phi) = CE(f(x; theta), y) + lambda w (1/B) sum_b CE(f(A(u_b); theta), argmax f(a(u_b); phi))
        w = (1/B) sum_b 1[max softmax f(a(u_b); phi) >= tau],    m_t = min(1 - 1 / (t + 1), m), t = 1, 2, ...

    Virtual and real steps share the batch. The virtual student is thrown away, what it has taught the teacher stays.
    K, tau and m are those of the authors' release. phi is the predictor; K = 0 is the self-training that the paper
    starts from.

    From segmentation to classification: a pixel becomes an image, so that w is the share of confident images of a
    batch; the mixing of labelled and unlabelled images, the distance to ImageNet features and class-balanced sampling
    fall away. The release takes virtual steps with the optimiser of the real ones and does not put its moments back;
    here they have an optimiser of the same kind and learning rate, whose moments are those of the virtual steps.
    Virtual students leave running statistics alone; the teacher normalises with the statistics of its batch, and its
    dropout is off.

    Counted passes per step and labelled example, r = `ratio`: (K + 1) (3 + 4 r). With lambda = 0 there is no teacher.
    """

    ahead: int = hyper(3, low=0, high=8, help="K virtual steps")
    momentum: float = hyper(0.999, low=0.5, high=0.9999, help="m, of the teacher")
    threshold: float = hyper(0.968, low=0.0, high=1.0, help="tau")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the unlabelled loss")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.teacher = teacher_of(model) if self.weight > 0 else None
        self.virtual = virtual_optimizer(model, view.recipe)
        self.t = 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if self.teacher is None or len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        self.t += 1
        momentum, lr = min(1.0 - 1.0 / (self.t + 1), self.momentum), learning_rate(self.view, self.lr_scale)
        with put_back(self.model):
            for _ in range(self.ahead):
                ema_update(self.teacher, self.model, momentum)
                virtual_step(self.virtual, self._loss(self.teacher, labeled, unlabeled), lr)
            ema_update(self.teacher, self.model, momentum)
        return self._loss(self.teacher, labeled, unlabeled)

    def _loss(self, teacher: nn.Module, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        examples = labeled.weak, labeled.y
        return future_loss(self.model, teacher, examples, unlabeled.weak, unlabeled.strong, self.threshold, self.weight)

    def predictor(self) -> nn.Module | None:
        return self.teacher
