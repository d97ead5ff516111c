"""Prototypical knowledge distillation from a language with labels to one without."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.features import with_features
from ..common.prototypes import class_means, prototype_weights
from ..common.rounds import train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_POOL_BATCH = 256
_FAR = -1e9
"""A logit that no softmax gives weight to, and whose gradient is a number."""


@register_method(
    "prokd", family="self-training", protocol="adaptation", paper="arXiv:2301.08855", outputs=("classes", "tokens")
)
@dataclass
class ProKD(AdaptationMethod):
    """A teacher whose prototypes agree across languages, and a student of it (Ge et al. 2023, arXiv:2301.08855).

    x, y are labelled source examples, u unlabelled target ones; h are features, what the classifier reads, and each
    word is an example of its own where the outputs are tokens.

        teacher:  m^S_k = mean of h(x) over y = k,   m^T_k = mean of h(u) over argmax f(u) = k        of a batch
                  c^S_k <- a c^S_k + (1 - a) m^S_k,  c^T_k likewise                                   prototypes
                  A(m, c) = mean over k of -log softmax_j( cos(m_k, c_j) / t )[k]
                  L = CE(f(x), y) + mu (A(m^S, c^T) + A(m^T, c^S)) / 2
        student:  q = softmax g(u)                              g: the teacher, in eval mode
                  y^ = argmax_k q_k softmax_k( -||h(u) - c_k|| / tau )
                  c_k <- a c_k + (1 - a) mean of h(u) over y^ = k
                  L = beta mean (softmax f(u) - q)^2 + lambda CE(f(u), y^)

    The parts are those of the paper's abstract: a contrastive alignment that moves the prototypes of one class together
    and those of different classes apart, across languages, and a student that learns from the teacher and is trained
    further on the target by its examples' distances from prototypes. Its equations and constants were not at hand, and
    no public code is known. So it is here that is chosen: what is compared (means of a batch, through which the
    gradient flows, with the other language's prototypes, through which none does; a class that the other language has
    not met is left out), the cosine, a = 0.99, t = 0.1, equal weights. The labels y^ are those of ProDA (Zhang et al.
    2021, arXiv:2101.10979), as in `prototype`: q is fixed, the distances are the student's and move with it, tau = 1.
    The squared difference of probabilities, a mean over examples and classes, and a student that begins anew and sees
    the target alone are those of the public code of Wu et al. 2020 (arXiv:2004.12440), whose setting ProKD's is. The
    student's first prototypes are means over the whole pool by the teacher's classes; a class that the teacher gives
    nothing there is never a label.

    Counted passes: 3 (1 + ratio) per labelled example and step of the teacher, 3 with mu = 0; twice the pool once; then
    4 ratio. Without unlabelled examples, or with mu = beta = lambda = 0, there is a teacher alone, which is
    `supervised`, bit by bit. With mu = lambda = 0 it is plain distillation, the method of Wu et al.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight lambda of the student's corrected labels")
    distil: float = hyper(1.0, low=0.0, high=100.0, help="weight beta of the teacher's probabilities")
    align: float = hyper(1.0, low=0.0, high=10.0, help="weight mu of the alignment of prototypes")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")
    teacher: float = hyper(0.5, low=0.05, high=0.9, help="share of the budget of the teacher")
    momentum: float = hyper(0.99, low=0.0, high=0.9999, help="what a prototype keeps in a step, a")
    contrast: float = hyper(0.1, low=0.01, high=1.0, log=True, help="temperature t of the alignment")
    temperature: float = hyper(1.0, low=0.01, high=100.0, log=True, help="temperature tau of the distances")
    student: str = hyper("new", choices=("new", "teacher"), help="the weights that the student begins with")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.guide = copy.deepcopy(model).requires_grad_(False).eval()
        # Prototypes (K, D), infinitely far where a class has not been met.
        self.source = self.target = torch.empty(0, device=view.device)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.round > 0 or self.align > 0 else 0

    def fit(self, view: View) -> None:
        rounds = 1 if self.distil + self.weight > 0 and len(view.unlabeled) else 0
        train_in_rounds(self, self, rounds, self.teacher, self._begin)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return self.view.task.supervised(self.model, labeled.weak, labeled.y)
        return self._student_loss(unlabeled.weak) if self.round else self._teacher_loss(labeled, unlabeled)

    def _teacher_loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        inputs = torch.cat([labeled.weak, unlabeled.weak])
        outputs, _, logits, h = self._examples(self.model, inputs)
        n = len(labeled) if outputs is logits else int(self.view.task.places(inputs[: len(labeled)]).sum())
        classes = labeled.y[labeled.y >= 0].long(), logits[n:].argmax(dim=1)
        means = [class_means(part, own, self.view.n_classes) for part, own in zip((h[:n], h[n:]), classes, strict=True)]
        (of_source, in_source), (of_target, in_target) = means
        self.source = moved(self.source, of_source, in_source, self.momentum)
        self.target = moved(self.target, of_target, in_target, self.momentum)
        apart = alignment(of_source, in_source, self.target, self.contrast)
        apart = apart + alignment(of_target, in_target, self.source, self.contrast)
        loss: Tensor = self.view.task.loss(outputs[: len(labeled)], labeled.y)
        return loss + self.align * apart / 2

    def _student_loss(self, inputs: Tensor) -> Tensor:
        _, kept, logits, h = self._examples(self.model, inputs)
        with torch.no_grad():
            outputs = self.guide(inputs)
            q = (outputs if kept is None else outputs[kept]).to(logits.dtype).softmax(dim=1)
            seen = h.detach().to(self.target.dtype)
            labels = (prototype_weights(seen, self.target, self.temperature) * q).argmax(dim=1)
            self.target = moved(self.target, *class_means(seen, labels, self.view.n_classes), self.momentum)
        loss: Tensor = self.distil * (logits.softmax(dim=1) - q).square().mean()
        return loss + self.weight * F.cross_entropy(logits, labels)

    def _examples(self, model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Of a batch: the outputs, which of their tokens are examples (None where each row is one), and of the examples
        logits (n, K) and features (n, D).
        """
        outputs, h = with_features(model, inputs)
        if outputs.dim() == 2:
            return outputs, None, outputs, h
        kept = self.view.task.places(inputs)
        logits = outputs[kept]
        if len(logits) != len(h):
            raise UsageError(
                f"prokd: the last linear layer of {type(model).__name__} reads {len(h)} rows, of {len(logits)} tokens "
                "that have a class; it must read these alone."
            )
        return outputs, kept, logits, h

    @torch.no_grad()
    def _begin(self) -> None:
        """The model becomes the teacher; the student's prototypes are means over the pool by the teacher's classes."""
        view = self.view
        self.guide.load_state_dict(self.model.state_dict())
        if self.student == "new":
            self.model.load_state_dict(view.new_model().state_dict())
        self.model.eval()
        total, count = torch.zeros(1, device=view.device), torch.zeros(1, device=view.device)
        for part in view.unlabeled.split(_POOL_BATCH):
            _, kept, _, h = self._examples(self.model, part)
            outputs = self.guide(part)
            classes = (outputs if kept is None else outputs[kept]).argmax(dim=1)
            member = F.one_hot(classes, view.n_classes).to(h.dtype).T
            total, count = total + member @ h, count + member.sum(dim=1, keepdim=True)
        self.target = torch.where(count > 0, total / count.clamp_min(1), torch.inf)


@torch.no_grad()
def moved(prototypes: Tensor, means: Tensor, met: Tensor, momentum: float) -> Tensor:
    """Prototypes (K, D) after a step towards the `means` (K, D) of the classes `met` (K, 1); the first one is taken
    whole. No prototypes at all are (0,).
    """
    if not len(prototypes):
        return torch.where(met, means, torch.inf)
    step = torch.where(prototypes.isinf(), means, torch.lerp(means, prototypes, momentum))
    return torch.where(met, step, prototypes)


def alignment(means: Tensor, met: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """The mean over classes of -log softmax_j( cos(m_k, c_j) / temperature )[k]: (K, D), (K, 1), (K, D) -> a scalar.

    It is taken over the classes that are `met` and have a prototype, and j over those that have one; 0 where none is.
    """
    known = prototypes[:, 0].isfinite()
    near = torch.where(known[:, None], prototypes, 0.0)
    cosines = F.normalize(means, dim=1) @ F.normalize(near, dim=1).T
    log_p = (cosines / temperature).masked_fill(~known, _FAR).log_softmax(dim=1).diagonal()
    both = known & met[:, 0]
    return -torch.where(both, log_p, 0.0).sum() / both.sum().clamp_min(1)
