from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.pseudo_label import PseudoLabel


def _slow(
    model: Any, labeled: Any, unlabeled: Any, threshold: float, weight: float, augment: str
) -> tuple[Tensor, int]:
    """One example at a time; the loss and how many unlabelled examples were kept."""
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(getattr(labeled, augment), labeled.y, strict=True):
        z = model(x[None])[0]
        supervised = supervised + z.exp().sum().log() - z[y]
    own, kept = torch.zeros((), dtype=torch.float64), 0
    for u in getattr(unlabeled, augment):
        z = model(u[None])[0]
        p = z.exp() / z.exp().sum()
        best = max(range(len(p)), key=lambda k: p[k].item())
        if p[best].item() >= threshold:
            own = own - p[best].log()
            kept += 1
    return supervised / len(labeled) + weight * own / len(unlabeled), kept


@pytest.mark.parametrize("augment", ["weak", "strong"])
@pytest.mark.parametrize(("progress", "ramp"), [(0.1, 0.25), (0.2, 0.5), (0.25, 1.0), (0.9, 1.0)])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], progress: float, ramp: float, augment: str
) -> None:
    method = PseudoLabel(threshold=0.4, weight=2.0, ramp=ramp, augment=augment)
    labeled, unlabeled = make_batches(make_view(method, progress=progress))
    parameters = list(method.model.parameters())
    slow, kept = _slow(method.model, labeled, unlabeled, 0.4, 2.0 * min(1.0, progress / ramp), augment)
    assert 0 < kept < len(unlabeled)
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (0.9, 1.0)])
def test_weight_rises_over_the_first_two_fifths_of_the_budget(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], progress: float, share: float
) -> None:
    method = PseudoLabel(threshold=0.0)
    labeled, unlabeled = make_batches(make_view(method, progress=progress))
    value = method.loss(labeled, unlabeled).item()
    supervised = PseudoLabel(weight=0.0)
    supervised.setup(method.model, method.view)
    base = supervised.loss(labeled, unlabeled.__class__(unlabeled.x[:0], None, None, None)).item()
    own = -method.model(unlabeled.weak).log_softmax(1).max(1).values.mean().item()
    assert value - base == pytest.approx(share * own, abs=1e-12)
    assert own > math.log(1.1)


def test_only_labelled_examples_move_the_running_statistics(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    method = PseudoLabel(threshold=0.0)
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    hidden = method.model[0](labeled.weak).detach()
    method.loss(labeled, unlabeled)
    expected = 0.1 * hidden.mean(0)
    torch.testing.assert_close(method.model[1].running_mean, expected, rtol=0, atol=1e-12)
    assert method.model[1].num_batches_tracked.item() == 1


def test_weight_zero_is_the_baseline_on_the_same_view(adapt: Callable[..., Any]) -> None:
    mine, theirs = adapt(PseudoLabel(weight=0.0, augment="strong")), adapt(Supervised(augment="strong"))
    assert all((a == b).all() for a, b in zip(mine.logits, theirs.logits, strict=True))
