"""Masked-language-model pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.masking import IGNORED, mask_tokens
from ..common.phases import can_pretrain, pretrain_then_finetune

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "masked-lm",
    family="pretraining",
    protocol="adaptation",
    paper="arXiv:2112.05090",
    needs=("masked-tokens",),
)
@dataclass
class MaskedLm(AdaptationMethod):
    """Hidden tokens of unlabelled texts are predicted first, classes afterwards (WILDS 2.0, arXiv:2112.05090).

        M = places of u, each with probability `rate`; u~ = u with 80 % of them masked, 10 % replaced, 10 % kept
        pre-training   L = (1/|M|) sum_{t in M} CE(g(u~)_t, u_t)      g: the body of f under its language head
        fine-tuning    L = CE(f(x), y)                                 as `supervised`

    Masking is BERT's (arXiv:1810.04805); body and head begin with the published weights. In WILDS 2.0 pre-training
    takes 1,000 steps of 8,192 texts at a rate of 1e-4 that falls to 0 along a line, on top of ERM's work, and the step
    of the least validation loss is kept. Here its work counts: it takes the share `pretrain` of the budget, in batches
    of `ratio` times the recipe's, by the task's optimiser and schedule, and its last step is kept.

    Counted passes: 3 ratio per labelled example of the recipe's batch and step of the pre-training, 3 afterwards. With
    `pretrain` 0 this is `supervised`, bit by bit.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wilds-amazon": {"pretrain_lr": 1e-4, "rate": 0.15},
        "wilds-civilcomments": {"pretrain_lr": 1e-4, "rate": 0.15},
    }

    pretrain: float = hyper(0.5, low=0.0, high=0.9, help="share of the budget for hidden tokens")
    pretrain_lr: float = hyper(1e-4, low=1e-5, high=1e-3, log=True, help="learning rate of the pre-training")
    rate: float = hyper(0.15, low=0.05, high=0.5, help="share of the tokens that are predicted")
    ratio: int = hyper(4, low=1, high=64, help="texts in a step of the pre-training per example of the recipe's batch")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.pretraining = can_pretrain(view, self.pretrain)
        if self.pretraining:
            tokens = view.task.vocabulary()
            self.mask, self.vocabulary, self.special = tokens.mask, tokens.size, tokens.special
            head = view.task.language_model(model).to(view.device)
            self.language_model = view.meter.attach(head)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.pretraining else 0

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        if not self.pretraining:
            return super().parameter_groups()
        scale = self.pretrain_lr / (self.view.recipe.lr * self.lr_scale)
        return [([parameter for parameter in self.language_model.parameters() if parameter.requires_grad], scale)]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if not self.pretraining:
            return self.view.task.supervised(self.model, labeled.weak, labeled.y)
        ids, targets = mask_tokens(
            unlabeled.x, self.view.generator, self.mask, self.vocabulary, self.special, self.rate
        )
        places = targets != IGNORED
        self.language_model.train()
        logits = self.language_model(ids, places)
        total = F.cross_entropy(logits, targets[places], reduction="sum")
        return total / places.sum().clamp_min(1)

    def fit(self, view: View) -> None:
        pretrain_then_finetune(self, self, view, self.pretrain)
