"""Predictions for pre-training."""

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
from ..common.masking import IGNORED, mask_tokens
from ..common.phases import can_pretrain

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

_LABELLING_BATCH = 1024
_TEACHER, _PRETRAINING, _FINE_TUNING = range(3)


@register_method("ppt", family="pretraining", protocol="adaptation", paper="-", needs=("masked-tokens",))
@dataclass
class Ppt(AdaptationMethod):
    """Predictions for pre-training language models (T. Guo, 2020).

        teacher        L = CE(f(x), y)
        t_j = argmax f(u_j)                         the whole pool, once, in eval mode, not augmented; f begins anew
        pre-training   L = CE(f(u), t) + mu (1/|M|) sum_{m in M} CE(g(u~)_m, u_m)
        fine-tuning    L = CE(f(x), y)                 from there, on the true labels alone

    g is the body of f under its language head, u~ are the texts with hidden places M, as in `masked-lm`: the paper adds
    the loss of the task on the predictions of a fine-tuned model to the loss of the pre-training. mu is
    `masked_weight`; 0 leaves pseudo-labels first and clean labels afterwards.

    Only the paper's abstract was at hand. Chosen here: hard labels of all texts, mu = 1, the shares of the budget, a
    schedule of its own for each phase, weak views for the pseudo-labelled loss, `ratio` texts a step per example of
    the recipe's batch.

    Counted passes: 3 per labelled example and step of the first and the last phase; U for the labels; 6 ratio per
    labelled example of the recipe's batch and step of the pre-training, 3 where mu is 0. With `pretrain` 0 there is one
    phase: this is `supervised`, bit by bit.
    """

    teacher: float = hyper(0.25, low=0.05, high=0.9, help="share of the budget of the model that labels")
    pretrain: float = hyper(0.5, low=0.0, high=0.95, help="share of the rest for the pre-training")
    masked_weight: float = hyper(1.0, low=0.0, high=10.0, help="weight mu of the hidden tokens")
    rate: float = hyper(0.15, low=0.05, high=0.5, help="share of the tokens that are hidden")
    ratio: int = hyper(4, low=1, high=64, help="texts in a step of the pre-training per example of the recipe's batch")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.phase, self.labelled = _TEACHER, False
        self.targets = torch.empty(0, dtype=torch.int64, device=view.device)
        self.pretrains = can_pretrain(view, self.pretrain)
        self.masks = self.pretrains and self.masked_weight > 0
        if self.masks:
            tokens = view.task.vocabulary()
            self.mask, self.vocabulary, self.special = tokens.mask, tokens.size, tokens.special
            self.language_model = view.meter.attach(view.task.language_model(model).to(view.device))

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.phase == _PRETRAINING else 0

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        if not self.masks or self.phase != _PRETRAINING:
            return super().parameter_groups()
        both = {id(item): item for part in (self.model, self.language_model) for item in part.parameters()}
        return [([item for item in both.values() if item.requires_grad], 1.0)]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        loss = F.cross_entropy(self.model(unlabeled.weak), self.targets[unlabeled.index])
        if not self.masks:
            return loss
        ids, hidden = mask_tokens(unlabeled.x, self.view.generator, self.mask, self.vocabulary, self.special, self.rate)
        places = hidden != IGNORED
        self.language_model.train()
        total = F.cross_entropy(self.language_model(ids, places), hidden[places], reduction="sum")
        return loss + self.masked_weight * total / places.sum().clamp_min(1)

    def fit(self, view: View) -> None:
        if not self.pretrains:
            view.train(self)
            return
        ends = (self.teacher, self.teacher + (1.0 - self.teacher) * self.pretrain, 1.0)
        while self.phase <= _FINE_TUNING:
            if self.phase == _PRETRAINING and not self.labelled:
                with view.meter.running():
                    self._label()
                self.labelled = True
            view.train(self, until=ends[self.phase])
            self.phase += 1

    @torch.no_grad()
    def _label(self) -> None:
        """Classes (U,) of the pool by the model, which then begins anew."""
        self.model.eval()
        pool = self.view.unlabeled
        places = torch.arange(len(pool), device=self.view.device).split(_LABELLING_BATCH)  # type: ignore[no-untyped-call]
        self.targets = torch.cat([self.model(pool[part]).argmax(dim=1) for part in places])
        self.model.load_state_dict(self.view.new_model().state_dict())
