"""Noisy Student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.adaptation import AdaptationTask, Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import chosen_view, has_strong
from ..common.dropout import dropout_before
from ..common.features import classifier_of

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024


@register_method(
    "noisy-student",
    family="self-training",
    protocol="adaptation",
    paper="arXiv:1911.04252",
    outputs=("classes", "numbers", "labels", "boxes"),
)
@dataclass
class NoisyStudent(AdaptationMethod):
    """Rounds of a noised student on the labels of a teacher that is not (Xie et al. 2020, arXiv:1911.04252).

        teacher:   L = CE(f(A(x)), y)
        r = 1, ..., R:
            t_j = one-hot argmax f(u_j)  (or softmax f(u_j))      the whole pool, once, in eval mode, not augmented
            L = CE(f~(A(x)), y) + lambda_u CE(f~(A(u)), t)        f~: dropout before the classifier

    A is the strong augmentation, or the weak one where the task has no strong one: then dropout alone is the noise,
    or nothing. Labelled and unlabelled examples pass in one forward. This is the form of WILDS 2.0
    (arXiv:2112.05090) and of its public code: the student is of the teacher's size and begins with its weights, the
    labels are hard, the two losses are means that are added, and the noise is A and one dropout layer. In the original
    the student is larger and begins anew, labels are soft, stochastic depth is noise too, and images are filtered by
    confidence and balanced over classes; all of this is left out.

    Chosen here: the first teacher takes the share `teacher` of the budget and the R rounds equal shares of the rest,
    each with an optimiser and a schedule of its own; a teacher is the model at the end of its training, not the best on
    validation data; and it labels the inputs as they are, where the public code flips and crops them. Of several
    labels each is one of its own, yes or no; boxes are those of the task's `targets`, pictures without any count as
    empty, and the two parts of a batch pass one after the other.

    Counted passes: 3 per labelled example and step of the first teacher, then R (U + 3 (1 + ratio) B S) for a pool of U
    and S steps of B labelled examples a round. With lambda_u = 0 there are no rounds: this is `supervised` on the same
    view of the labelled examples.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wilds-camelyon17": {"ratio": 1},
        "wilds-domainnet": {"ratio": 2},
        "wilds-fmow": {"ratio": 1},
        "wilds-globalwheat": {"ratio": 1, "dropout": 0.0},
        "wilds-iwildcam": {"ratio": 1},
        "wilds-ogb-molpcba": {"ratio": 1, "dropout": 0.0},
        "wilds-poverty": {"ratio": 1},
    }

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda_u of the unlabelled loss")
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one")
    rounds: int = hyper(2, low=1, high=5, help="number R of students")
    teacher: float = hyper(0.25, low=0.05, high=0.9, help="share of the budget of the first teacher")
    dropout: float = hyper(0.5, low=0.0, high=0.9, help="dropout rate of the student's features")
    labels: str = hyper(
        "hard", choices=("hard", "soft"), asks={"soft": ("classes",)}, help="the teacher's class, or its probabilities"
    )
    augment: str = hyper(
        "strong",
        choices=("weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="view of the labelled examples",
    )

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        if self.labels == "soft" and (view.n_classes < 2 or type(view.task).targets is not AdaptationTask.targets):
            raise UsageError(f"{type(view.task).__name__} has no classes to be unsure of: use labels=hard.")
        self.noise = "strong" if has_strong(view) else "weak"
        self.round, self.labelled_in = 0, 0
        self.targets = torch.empty(0, device=view.device)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 and self.round > 0 else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        task = self.view.task
        inputs = chosen_view(labeled, self.noise if self.augment == "strong" else "weak")
        if len(unlabeled) == 0:
            return task.supervised(self.model, inputs, labeled.y)
        noised, targets = chosen_view(unlabeled, self.noise), self.targets[unlabeled.index]
        with dropout_before(classifier_of(self.model), self.dropout):
            if task.own_loss:
                own = task.supervised(self.model, noised, targets)
                return task.supervised(self.model, inputs, labeled.y) + self.weight * own
            logits = self.model(torch.cat([inputs, noised]))
        loss = task.loss(logits[: len(labeled)], labeled.y)
        return loss + self.weight * task.loss(logits[len(labeled) :], targets)

    def fit(self, view: View) -> None:
        rounds = self.rounds if self.weight > 0 and len(view.unlabeled) else 0
        while self.round <= rounds:
            if self.labelled_in < self.round:
                with view.meter.running():
                    self.targets = self._label(view.unlabeled)
                self.labelled_in = self.round
            last = self.round == rounds
            view.train(self, until=1.0 if last else self.teacher + (1.0 - self.teacher) * self.round / rounds)
            self.round += 1

    @torch.no_grad()
    def _label(self, inputs: Tensor) -> Tensor:
        """What the model says of `inputs` (U, ...) in eval mode: classes (U,), or what the task has; or (U, K) soft."""
        self.model.eval()
        logits = torch.cat([self.model(part) for part in torch.split(inputs, _LABELLING_BATCH)])
        return self.view.task.targets(logits) if self.labels == "hard" else logits.softmax(dim=1)
