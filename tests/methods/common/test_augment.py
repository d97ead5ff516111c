from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.augment import check_augment, chosen_view
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.adaptation import AdaptationTask


def test_views_go_by_name(make_view: Callable[..., Any], make_batches: Callable[..., Any]) -> None:
    labeled, _ = make_batches(make_view(Supervised()))
    for name, expected in (("none", labeled.x), ("weak", labeled.weak), ("strong", labeled.strong)):
        assert torch.equal(chosen_view(labeled, name), expected)
    assert not torch.equal(labeled.weak, labeled.strong)


def test_a_missing_strong_view_is_named(make_view: Callable[..., Any], dropout_task: Any) -> None:
    class Plain(type(dropout_task)):
        strong = AdaptationTask.strong

    view = make_view(Supervised(), Plain())
    check_augment("any", "weak", view)
    check_augment("any", "strong", make_view(Supervised()))
    with pytest.raises(UsageError, match="Plain has no strong augmentation; run any with augment=weak"):
        check_augment("any", "strong", view)
