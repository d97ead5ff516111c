from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.adaptation import AdaptationTask


@pytest.mark.parametrize(("augment", "view_name"), [("none", "x"), ("weak", "weak"), ("strong", "strong")])
def test_loss_equals_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], augment: str, view_name: str
) -> None:
    method = Supervised(augment=augment)
    labeled, unlabeled = make_batches(make_view(method))
    total = 0.0
    for x, y in zip(getattr(labeled, view_name), labeled.y, strict=True):
        z = method.model(x[None])[0].detach()
        total += float(torch.logsumexp(z, 0) - z[y])
    assert method.loss(labeled, unlabeled).item() == pytest.approx(total / len(labeled), abs=1e-12)


def test_asks_for_no_unlabelled_example_and_no_teacher() -> None:
    method = Supervised()
    assert method.unlabeled_ratio() == 0
    assert method.predictor() is None


def test_strong_augmentation_is_refused_where_the_task_has_none(
    make_view: Callable[..., Any], dropout_task: Any
) -> None:
    class Plain(type(dropout_task)):
        strong = AdaptationTask.strong

    with pytest.raises(UsageError, match="Plain has no strong augmentation; run supervised with augment=weak"):
        make_view(Supervised(augment="strong"), Plain())
    make_view(Supervised(augment="weak"), Plain())
