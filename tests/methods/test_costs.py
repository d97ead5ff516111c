"""Counted example passes of one batch or step: forward 1, backward 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.mean_teacher import MeanTeacher
from selfbench.methods.self_training.fixmatch import FixMatch
from selfbench.methods.self_training.norm import Norm
from selfbench.methods.self_training.pseudo_label import PseudoLabel
from selfbench.methods.self_training.tent import Tent


@pytest.mark.parametrize(
    ("method", "per_image"), [(Norm(), 1), (Norm(source_weight=0.3), 1), (Tent(), 3), (Tent(steps=2), 6)], ids=str
)
def test_stream(stream: Callable[..., Any], method: Any, per_image: int) -> None:
    assert stream(method).counts.passes == 40 * per_image


@pytest.mark.parametrize(
    ("method", "per_labeled"),
    [
        (Supervised(), 3),
        (PseudoLabel(ratio=2), 3 * (1 + 2)),
        (FixMatch(ratio=2), 3 * (1 + 2 * 2)),
        (MeanTeacher(ratio=2), (3 + 1) * (1 + 2)),
    ],
    ids=str,
)
def test_adaptation(adapt: Callable[..., Any], method: Any, per_labeled: int) -> None:
    steps, batch = 4, 8
    result = adapt(method, limit=steps * batch * per_labeled)
    assert result.counts.passes == result.at[-1] == steps * batch * per_labeled
