"""Self-calibrated fine-tuning."""

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
from ..common.rounds import train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024


@register_method("self-calibrated", family="self-training", protocol="adaptation", paper="arXiv:2302.09268")
@dataclass
class SelfCalibrated(AdaptationMethod):
    """Fine-tuning on labels that the model has corrected itself (Vega v1, Zhong et al. 2023, arXiv:2302.09268).

        first:   L = CE(f(x), y)
        r = 1, ..., R, over the labelled examples, in eval mode, not augmented:
            p_i = softmax f(x_i)
            soft:   s_i = p_i        hard:   s_i = e(argmax p_i) where max_k p_ik >= tau, else e(y_i)
            t_i = (1 - alpha) e(y_i) + alpha s_i
            f begins anew;   L = CE(f(x), t)

    e(k) is the one-hot vector of class k. Labels with which a model that has fitted the others does not agree are
    taken back in part; with alpha = 1 and hard labels they are replaced. Only labelled examples are used.

    Only the report's abstract, which names the technique, was at hand, and no code. All in the box is therefore chosen
    here, after the usual two-stage correction of noisy labels: soft labels, alpha = 0.5, one round, shares of the
    budget, a model that begins anew on the corrected labels. Predictions are those on examples that the model was
    trained on: with few labels and a model that fits them all, little is corrected, and self-distillation is
    what is left.

    Counted passes: 3 per labelled example and step, and L per round for L labelled examples. With alpha = 0 there are
    no rounds: this is `supervised`.
    """

    weight: float = hyper(0.5, low=0.0, high=1.0, help="share alpha of the model's own prediction in a target")
    labels: str = hyper("soft", choices=("soft", "hard"), help="own predictions as probabilities or as classes")
    threshold: float = hyper(0.5, low=0.0, high=1.0, help="confidence tau from which a hard label replaces the given")
    rounds: int = hyper(1, low=1, high=10, help="number R of corrections")
    teacher: float = hyper(0.5, low=0.05, high=0.9, help="share of the budget before the first correction")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        like = next(model.parameters())
        self.targets = torch.empty(0, view.n_classes, device=view.device, dtype=like.dtype)

    def fit(self, view: View) -> None:
        train_in_rounds(self, self, self.rounds if self.weight > 0 else 0, self.teacher, self._correct)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        logits = self.model(labeled.weak)
        return F.cross_entropy(logits, labeled.y if self.round == 0 else self.targets[labeled.index])

    @torch.no_grad()
    def _correct(self) -> None:
        """`targets` (L, K) of all labelled examples; then the model begins anew."""
        view = self.view
        self.model.eval()
        places = torch.arange(len(view.labels), device=view.device).split(_LABELLING_BATCH)  # type: ignore[no-untyped-call]
        logits = torch.cat([self.model(view.labeled[part]) for part in places])
        self.targets = corrected(logits, view.labels, self.weight, self.threshold if self.labels == "hard" else None)
        self.model.load_state_dict(view.new_model().state_dict())


def corrected(logits: Tensor, labels: Tensor, weight: float, threshold: float | None) -> Tensor:
    """The targets t (L, K) of examples with given classes `labels` (L,) and the model's `logits` (L, K).

    alpha is `weight`; soft own labels where `threshold` is None, else hard ones from that confidence on.
    """
    given = F.one_hot(labels, logits.size(1)).to(logits.dtype)
    own = logits.softmax(dim=1)
    if threshold is not None:
        sure, classes = own.max(dim=1)
        own = torch.where((sure >= threshold)[:, None], F.one_hot(classes, logits.size(1)).to(logits.dtype), given)
    return torch.lerp(given, own, weight)
