"""An interrupted run that is resumed equals an uninterrupted one bit by bit, for every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.source import SourceModel
from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.mean_teacher import MeanTeacher
from selfbench.methods.self_training.fixmatch import FixMatch
from selfbench.methods.self_training.norm import Norm
from selfbench.methods.self_training.pseudo_label import PseudoLabel
from selfbench.methods.self_training.tent import Tent

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
