"""Transductive fine-tuning."""

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
from ..common.losses import weighted_cross_entropy
from ..common.rounds import draw, train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View
    from ...suite.protocols.pool import LazyPool

_LABELLING_BATCH = 1024


@register_method(
    "transductive", family="self-training", protocol="adaptation", paper="arXiv:2302.09268", needs=("test-inputs",)
)
@dataclass
class Transductive(AdaptationMethod):
    """Fine-tuning on the test inputs with the model's own labels (Vega v1, Zhong et al. 2023, arXiv:2302.09268).

        teacher:   L = CE(f(x), y)
        r = 1, ..., R, over the test inputs u, in eval mode, not augmented:
            yhat_j = argmax_k p_jk,  p_j = softmax f(u_j),  m_j = 1[max_k p_jk >= tau]
            L = CE(f(x), y) + lambda mean_j m_j CE(f(u_j), yhat_j),  from the model as it stands

    The model meets the inputs that it will be scored on, never their labels: what it learns of them is not available to
    an inductive method, so that the two are to be compared with that in mind. `inputs` "pool" is the same algorithm on
    the unlabelled pool, the control that tells what the test inputs add.

    Only the report's abstract, which names the technique, was at hand, and no code. All in the box is therefore chosen
    here, after transductive self-training as it is commonly done: hard labels, tau = 0 (all test inputs count), lambda
    = 1, one round, shares of the budget, a student that goes on from its teacher, weak views of both in one forward,
    `ratio` test inputs per labelled example of a step, drawn with replacement.

    Counted passes: 3 per labelled example and step of the teacher, then R (T + 3 (1 + ratio) B S) for T test inputs
    and S steps of B labelled examples a round. With lambda = 0 there are no rounds: this is `supervised`.
    """

    inputs: str = hyper("test", choices=("test", "pool"), help="what is labelled by the model: test inputs or the pool")
    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the loss on own labels")
    threshold: float = hyper(0.0, low=0.0, high=1.0, help="confidence tau from which an own label counts")
    ratio: int = hyper(1, low=1, high=16, help="own-labelled inputs per labelled example in a step")
    rounds: int = hyper(1, low=1, high=10, help="number R of rounds")
    teacher: float = hyper(0.5, low=0.05, high=0.9, help="share of the budget before the first round")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.targets = torch.empty(0, dtype=torch.int64, device=view.device)
        self.kept = torch.empty(0, dtype=torch.bool, device=view.device)

    def fit(self, view: View) -> None:
        rounds = self.rounds if self.weight > 0 and len(self._shown()) else 0
        train_in_rounds(self, self, rounds, self.teacher, self._label)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if self.round == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        drawn = draw(len(self.targets), self.ratio * len(labeled), self.view)
        u = self.view.task.weak(self._shown()[drawn], self.view.generator)
        logits = self.model(torch.cat([labeled.weak, u]))
        of_labeled, own = logits[: len(labeled)], logits[len(labeled) :]
        loss = F.cross_entropy(of_labeled, labeled.y)
        return loss + self.weight * weighted_cross_entropy(own, self.targets[drawn], self.kept[drawn])

    def _shown(self) -> Tensor | LazyPool:
        return self.view.test_inputs if self.inputs == "test" else self.view.unlabeled

    @torch.no_grad()
    def _label(self) -> None:
        """`targets` (T,) yhat and `kept` (T,) m of all inputs."""
        self.model.eval()
        shown = self._shown()
        places = torch.arange(len(shown), device=self.view.device).split(_LABELLING_BATCH)  # type: ignore[no-untyped-call]
        parts = [self.model(shown[part]).softmax(dim=1).max(dim=1) for part in places]
        self.targets = torch.cat([part.indices for part in parts])
        self.kept = torch.cat([part.values for part in parts]) >= self.threshold
