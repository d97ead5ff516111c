"""An interrupted run that is resumed equals an uninterrupted one bit by bit, for every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.baselines.source import SourceModel
from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.mean_teacher import MeanTeacher
from selfbench.methods.self_training.fixmatch import FixMatch
from selfbench.methods.self_training.norm import Norm
from selfbench.methods.self_training.pseudo_label import PseudoLabel
from selfbench.methods.self_training.tent import Tent
from selfbench.suite.protocols.adaptation import Batch, LabeledBatch
from selfbench.suite.protocols.adaptation_method import AdaptationMethod
from selfbench.suite.protocols.adaptation_view import View
from selfbench.suite.registry import register_method

STREAM = [SourceModel(), Norm(), Norm(source_weight=0.5), Tent(), Tent(optimizer="sgd", steps=2)]
ADAPTATION = [Supervised(), PseudoLabel(threshold=0.3), FixMatch(threshold=0.3, ratio=2), MeanTeacher()]


def _same(whole: Any, resumed: Any) -> None:
    assert len(whole.logits) == len(resumed.logits) > 0
    for mine, theirs in zip(whole.logits, resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name, module in vars(whole.method).items():
        if isinstance(module, torch.nn.Module):
            state = getattr(resumed.method, name).state_dict()
            assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items()), name
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize("method", STREAM, ids=str)
def test_stream(stream: Callable[..., Any], method: Any) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    assert len(killed.logits) == 2
    resumed = stream(dataclasses.replace(method))
    resumed.logits = killed.logits + resumed.logits
    _same(whole, resumed)


@pytest.mark.parametrize("method", ADAPTATION, ids=str)
def test_adaptation(adapt: Callable[..., Any], method: Any) -> None:
    whole = adapt(dataclasses.replace(method))
    killed = adapt(dataclasses.replace(method), checkpoints=0, stop_after=5)
    resumed = adapt(dataclasses.replace(method))
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed.logits = killed.logits + resumed.logits
    _same(whole, resumed)


@register_method("tested-rounds", family="tests", protocol="adaptation", paper="-")
@dataclasses.dataclass
class Rounds(AdaptationMethod):
    """Three rounds, each on the labels that the model of the round before gave to the pool."""

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labeled_in = 0, -1
        self.pseudo = torch.zeros(len(view.unlabeled), dtype=torch.int64)

    def unlabeled_ratio(self) -> int:
        return 1

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        loss = F.cross_entropy(self.model(labeled.weak), labeled.y)
        return loss + self.round * F.cross_entropy(self.model(unlabeled.weak), self.pseudo[unlabeled.index])

    def fit(self, view: View) -> None:
        while self.round < 3:
            if self.labeled_in != self.round:
                with torch.no_grad():
                    self.pseudo = self.model(view.unlabeled).argmax(1)
                self.labeled_in = self.round
            view.train(self, until=(self.round + 1) / 3)
            self.round += 1


@pytest.mark.parametrize("stop_after", [2, 8, 9, 15, 20])
def test_a_method_with_rounds(adapt: Callable[..., Any], stop_after: int) -> None:
    whole = adapt(Rounds())
    killed = adapt(Rounds(), checkpoints=0, stop_after=stop_after)
    resumed = adapt(Rounds())
    assert 0 < killed.counts.passes < whole.counts.passes
    assert resumed.method.round == 2
    resumed.logits = killed.logits + resumed.logits
    _same(whole, resumed)
