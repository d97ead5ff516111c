from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.hast import Hast, agreeing, class_weights
from selfbench.suite.protocols.pool import LazyPool

POOL, LABELED, BATCH = 68, 12, 8


def loose(**changes: Any) -> Hast:
    """A method that keeps some of the labels of a hardly trained model on the tiny task."""
    return Hast(**{"neighbours": 4, "confidence": 0.2, "ratio": 2, **changes})


def plain(inputs: Tensor, generator: Any) -> Tensor:
    return inputs


def as_student(method: Hast) -> None:
    """The method as it stands in its first round, on the labels of its untrained model."""
    method.round = method.labelled_in = 1
    method._label()
    method.model.train()
    assert 0 < len(method.chosen) < POOL


@pytest.mark.parametrize("neighbours", [2, 5, 15])
@pytest.mark.parametrize("agreement", [0.5, 0.75])
def test_the_filter_equals_a_loop_over_examples(neighbours: int, agreement: float) -> None:
    random = np.random.default_rng(neighbours)
    p = random.dirichlet(np.full(3, 0.4), size=60)
    features = p @ random.normal(size=(3, 5)) + 0.2 * random.normal(size=(60, 5))
    features[7] = 3 * features[8]  # the nearest of all, without a vote for itself
    p[7] = p[8] = [0.0, 0.1, 0.9]
    expected = []
    for i in range(60):
        cosine = [a @ features[i] / np.linalg.norm(a) / np.linalg.norm(features[i]) for a in features]
        nearest = sorted((j for j in range(60) if j != i), key=lambda j: -cosine[j])[: neighbours - 1]
        votes = np.bincount([p[j].argmax() for j in nearest], minlength=3) / len(nearest)
        own = p[i].argmax()
        expected.append(votes.argmax() == own and votes.max() > agreement and p[i].max() > 0.5)
    found = agreeing(torch.from_numpy(features), torch.from_numpy(p), neighbours, agreement, 0.5)
    assert found.tolist() == expected
    assert 0 < sum(expected) < 60


def test_the_filter_of_tiny_pools() -> None:
    sure = torch.tensor([[0.9, 0.1]] * 3)
    features = torch.eye(3)
    assert agreeing(features[:1], sure[:1], 15, 0.5, 0.5).tolist() == [False]
    assert agreeing(features, sure, 15, 0.5, 0.5).tolist() == [True] * 3


def test_class_weights_have_the_constants_of_the_authors_code() -> None:
    classes = torch.tensor([0] * 8 + [1] * 3 + [3])
    expected = {0: (3 - 8) / 8, 1: 0.0, 3: (3 - 1) / 1}  # 12 labels of 4 classes: 3 expected
    found = class_weights(classes, 4)
    for label, gap in expected.items():
        assert found[classes == label].tolist() == pytest.approx([10 / (1 + math.exp(-gap))] * (classes == label).sum())
    assert class_weights(torch.tensor([0] * 7 + [1] * 4), 2)[0] == pytest.approx(10 / (1 + math.exp(2 / 7)))


@pytest.mark.parametrize("class_weighting", [True, False])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_loss_is_the_weighted_mean_over_labels_and_pseudo_labels(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], beta: float, class_weighting: bool
) -> None:
    """All labelled and all pseudo-labelled examples as one step: the objective of the docstring, one by one."""
    method = loose(weight=beta, class_weights=class_weighting)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, labeled=LABELED, unlabeled=0)
    as_student(method)
    assert len(set(method.targets.tolist())) > 1
    alpha = class_weights(method.targets, 4) if class_weighting else torch.ones(len(method.targets))
    total, losses = float(LABELED), torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        z = method.model(x[None])[0]
        losses = losses + z.exp().sum().log() - z[y]
    for j, y, a in zip(method.chosen.tolist(), method.targets.tolist(), alpha.tolist(), strict=True):
        z = method.model(view.unlabeled[j][None])[0]
        losses = losses + beta * a * (z.exp().sum().log() - z[y])
        total += beta * a
    expected = losses / total
    parameters = list(method.model.parameters())
    gradients = torch.autograd.grad(expected, parameters)
    view.task.weak = plain
    method.ratio = len(method.chosen) / LABELED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfbench.methods.self_training.hast.draw", lambda n, size, view: torch.arange(n))
        loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_pseudo_labels_make_the_round_trip(make_view: Callable[..., Any], make_batches: Callable[..., Any]) -> None:
    """What a step trains on is an example of the pool, with the label that the teacher gave to that very example."""
    method = loose()
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=0)
    as_student(method)
    with torch.no_grad():
        of_teacher = [method.model.eval()(u[None]).argmax().item() for u in view.unlabeled]
    assert method.targets.tolist() == [of_teacher[j] for j in method.chosen.tolist()]
    view.task.weak, seen = plain, []
    hook = method.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = method.loss(labeled, unlabeled)
    hook.remove()
    rows = seen[0][BATCH:]
    assert len(rows) == 2 * BATCH
    places = [next(j for j in range(POOL) if torch.equal(view.unlabeled[j], row)) for row in rows]
    weight = dict(zip(method.chosen.tolist(), method.weights.tolist(), strict=True))

    def with_labels(labels: list[int]) -> float:
        own = F.cross_entropy(method.model(rows), torch.tensor(labels), reduction="none")
        own = (own * torch.tensor([weight[j] for j in places], dtype=torch.float64)).mean()
        of_labeled = F.cross_entropy(method.model(labeled.weak), labeled.y)
        return (method.share * of_labeled + (1 - method.share) * own).item()

    assert loss.item() == pytest.approx(with_labels([of_teacher[j] for j in places]), abs=1e-12)
    assert loss.item() != pytest.approx(with_labels([of_teacher[(j + 1) % POOL] for j in places]), abs=1e-3)


def test_labelling_leaves_the_model_alone_and_gives_no_gradient(
    make_view: Callable[..., Any], dropout_task: Any
) -> None:
    method = loose(confidence=0.0, agreement=0.5)
    view = make_view(method, dropout_task, progress=0.0)
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    method.model.train()
    method._label()
    assert view.meter.counts.passes == POOL
    assert all(torch.equal(value, before[name]) for name, value in method.model.state_dict().items())
    assert not method.weights.requires_grad
    assert method.weights.mean().item() == pytest.approx(1.0)


def test_large_pools_are_sampled(make_view: Callable[..., Any]) -> None:
    method = loose(candidates=20, confidence=0.0)
    view = make_view(method, progress=0.0)
    method._label()
    assert view.meter.counts.passes == 20
    assert len(method.chosen.unique()) == len(method.chosen) <= 20


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(loose(weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(loose()).logits[-1], baseline.logits[-1])


def test_with_no_label_kept_the_student_is_a_second_teacher(adapt: Callable[..., Any]) -> None:
    result = adapt(loose(confidence=1.0))
    assert len(result.method.chosen) == 0
    assert result.method.round == 1
    assert len(result.logits) == 3


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    """A teacher of 5 steps, two students of 3 steps each that label the pool before."""
    step, student = 3 * BATCH, 3 * BATCH * (1 + 2)
    limit = 5 * step + 2 * (POOL + 3 * student)
    result = adapt(loose(rounds=2, teacher=5 * step / limit), limit=limit)
    assert result.counts.passes == limit
    assert result.method.round == 2


@pytest.mark.parametrize("stop_after", [3, 15, 17, 20, 25])
def test_a_run_killed_in_any_round_resumes_bit_equal(adapt: Callable[..., Any], stop_after: int) -> None:
    whole = adapt(loose(rounds=2))
    killed = adapt(loose(rounds=2), checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(loose(rounds=2))
    assert whole.method.round == resumed.method.round == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    expected = whole.method.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.method.model.state_dict().items())
    for name in ("chosen", "targets", "weights", "share"):
        mine, theirs = getattr(whole.method, name), getattr(resumed.method, name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


def test_a_lazy_run_equals_one_with_all_examples_in_memory(adapt: Callable[..., Any], dropout_task: Any) -> None:
    lazy_task = type("LazyTask", (type(dropout_task),), {"lazy": True})()
    whole, lazy = adapt(loose(), dropout_task), adapt(loose(), lazy_task)
    assert isinstance(lazy.method.view.unlabeled, LazyPool)
    for mine, theirs in zip(whole.logits, lazy.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
