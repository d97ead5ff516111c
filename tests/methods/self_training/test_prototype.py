from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.prototypes import class_means, prototype_weights
from selfbench.methods.self_training.prototype import Prototype
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.adaptation import AdaptationTask

K = 4


def _cross_entropy(z: Tensor, y: int) -> Tensor:
    return z.exp().sum().log() - z[y]


def _ready(method: Any, make_view: Callable[..., Any]) -> Any:
    """The method after its teacher's round, with labels that leave the distances something to decide."""
    view = make_view(method)
    method._label(view)
    method.round = 1
    generator = torch.Generator().manual_seed(2)
    method.q = (0.3 * torch.randn(len(view.unlabeled), K, generator=generator, dtype=torch.float64)).softmax(1)
    return view


@pytest.mark.parametrize("augment", ["weak", "strong"])
def test_loss_gradient_and_prototypes_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], augment: str
) -> None:
    method = Prototype(weight=2.0, temperature=0.5, momentum=0.8, augment=augment)
    labeled, unlabeled = make_batches(_ready(method, make_view))
    before, model = method.prototypes.clone(), method.model
    slow, kept = torch.zeros((), dtype=torch.float64), {k: [] for k in range(K)}
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        slow = slow + _cross_entropy(model(x[None])[0], int(y)) / len(labeled)
    decided = 0
    for number, (weak, trained) in enumerate(zip(unlabeled.weak, getattr(unlabeled, augment), strict=True)):
        with torch.no_grad():
            h = nn.Sequential(*list(model)[:-1])(weak[None])[0]
            kept[int(model(weak[None])[0].argmax())].append(h)
            near = torch.stack([-((h - eta) ** 2).sum().sqrt() / 0.5 for eta in before]).exp()
            q = method.q[int(unlabeled.index[number])]
            label = int((near / near.sum() * q).argmax())
            decided += label != int(q.argmax())
        slow = slow + 2.0 * _cross_entropy(model(trained[None])[0], label) / len(unlabeled)
    assert 0 < decided < len(unlabeled)
    parameters = list(model.parameters())
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    expected = torch.autograd.grad(slow, parameters)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    for k, rows in kept.items():
        moved = 0.8 * before[k] + 0.2 * sum(rows) / len(rows) if rows else before[k]
        torch.testing.assert_close(method.prototypes[k], moved, rtol=0, atol=1e-12)


def test_the_pool_is_labelled_and_its_prototypes_are_means(make_view: Callable[..., Any]) -> None:
    method = Prototype()
    view = make_view(method)
    with torch.no_grad():
        method.model[-1].bias[3] = -100.0  # a class that is never predicted
        logits, h = method.model(view.unlabeled), nn.Sequential(*list(method.model)[:-1])(view.unlabeled)
        of_labeled = nn.Sequential(*list(method.model)[:-1])(view.labeled)
    method._label(view)
    torch.testing.assert_close(method.q, logits.softmax(1), rtol=0, atol=1e-12)
    classes = logits.argmax(1)
    for k in range(3):
        if (classes == k).any():
            torch.testing.assert_close(method.prototypes[k], h[classes == k].mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(method.prototypes[3], of_labeled[view.labels == 3].mean(0), rtol=0, atol=1e-12)


def test_weights_and_means_in_closed_form() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    prototypes = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]], dtype=torch.float64)
    distances = torch.tensor([[0.0, 5.0, 4.0], [5.0, 0.0, 3.0]], dtype=torch.float64)
    weights = prototype_weights(features, prototypes, 2.0)
    torch.testing.assert_close(weights, (-distances / 2).softmax(1), rtol=0, atol=1e-12)
    mean, met = class_means(features, torch.tensor([2, 2]), 3)
    assert mean.tolist() == [[0, 0], [0, 0], [1.5, 2.0]]
    assert met[:, 0].tolist() == [False, False, True]


def test_no_gradient_flows_through_labels_and_prototypes(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = Prototype(weight=1.0)
    labeled, unlabeled = make_batches(_ready(method, make_view))
    method.loss(labeled, unlabeled).backward()
    assert not method.prototypes.requires_grad
    assert not method.q.requires_grad


def test_weight_zero_is_supervised_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero, weighted = adapt(Supervised()), adapt(Prototype(weight=0.0)), adapt(Prototype())
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(weighted.logits[-1], baseline.logits[-1])
    heavier = adapt(Prototype(weight=3.0))
    assert not np.array_equal(weighted.logits[-1], heavier.logits[-1])


@pytest.mark.parametrize("stop_after", [5, 31, 33, 40])
def test_a_resumed_run_equals_an_uninterrupted_one(adapt: Callable[..., Any], stop_after: int) -> None:
    """Killed in the teacher's round, and early and late in the student's: steps of 24 and 48 passes of 1,500."""
    whole = adapt(Prototype())
    killed = adapt(Prototype(), checkpoints=0, stop_after=stop_after)
    resumed = adapt(Prototype())
    assert 0 < killed.counts.passes < whole.counts.passes
    assert (killed.method.round == 1) == (stop_after > 32)
    logits = killed.logits + resumed.logits
    assert len(logits) == len(whole.logits) == 3
    for mine, theirs in zip(logits, whole.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert torch.equal(whole.method.prototypes, resumed.method.prototypes)
    assert torch.equal(whole.method.q, resumed.method.q)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize(("augment", "views"), [("weak", 1), ("strong", 2)])
def test_counted_passes(adapt: Callable[..., Any], augment: str, views: int) -> None:
    teacher, labelling, step = 4 * 8 * 3, 68 + 12, 8 * 3 * (1 + 2 * views)
    limit = teacher + labelling + 3 * step
    method = Prototype(ratio=2, augment=augment, teacher=(teacher - 1) / limit)
    assert adapt(method, limit=limit).counts.passes == limit


def test_strong_views_are_refused_where_the_task_has_none(make_view: Callable[..., Any], dropout_task: Any) -> None:
    class Plain(type(dropout_task)):
        strong = AdaptationTask.strong

    with pytest.raises(UsageError, match="Plain has no strong augmentation; run prototype with augment=weak"):
        make_view(Prototype(augment="strong"), Plain())
