"""AcTune and VERIPS: selections against loops over examples, and the contract of methods that label in rounds."""

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
from selfbench.methods.self_training.actune import AcTune, clusters, from_regions, normalised_entropy, surest
from selfbench.methods.self_training.verips import Verips, verified
from selfbench.suite.protocols.pool import LazyPool

POOL, LABELED, BATCH = 68, 12, 8
METHODS = [
    pytest.param(AcTune(confidence=0.2, regions=4, sampled=2, each=6, ratio=2, rounds=2), id="actune"),
    pytest.param(AcTune(selection="memory", confidence=0.2, ratio=2, rounds=2), id="actune-memory"),
    pytest.param(Verips(uncertainty=0.98, ratio=2, rounds=2), id="verips"),
]
"""With thresholds at which a hardly trained model on the tiny task keeps some labels."""


def fresh(method: Any, **changes: Any) -> Any:
    return dataclasses.replace(method, **changes)


def as_student(method: Any) -> None:
    """The method as it stands in its first round, on the labels of its untrained model."""
    method.round = method.labelled_in = 1
    if isinstance(method, Verips):
        method.uncertainty = 1.0
    method._label()
    method.model.train()
    assert 0 < len(method.chosen) < POOL


def entropy(p: Any) -> float:
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


@pytest.mark.parametrize("uncertainty", [0.2, 0.6, 0.9])
def test_verified_equals_a_loop_over_examples(uncertainty: float) -> None:
    random = np.random.default_rng(0)
    p, other = random.dirichlet(np.full(4, 0.3), size=80), random.integers(0, 4, 80)
    expected = [
        entropy(row) / math.log(4) <= uncertainty and row.argmax() == theirs
        for row, theirs in zip(p, other, strict=True)
    ]
    assert verified(torch.from_numpy(p), torch.from_numpy(other), uncertainty).tolist() == expected
    assert 0 < sum(expected) < 80


@pytest.mark.parametrize("seed", range(6))
def test_regions_equal_a_loop_over_examples(seed: int) -> None:
    random = np.random.default_rng(seed)
    region, classes = random.integers(0, 7, 60), random.integers(0, 3, 60)
    region[region == 4] = 3  # one number is nobody's
    uncertainty = random.random(60)
    values = {}
    for number in set(region.tolist()):
        members = [j for j in range(60) if region[j] == number]
        shares = [sum(classes[j] == k for j in members) / len(members) for k in range(3)]
        values[number] = sum(uncertainty[j] for j in members) / len(members) + 0.5 * entropy(shares)
    expected, wanted = [], 0
    for number in sorted(values, key=lambda number: values[number])[:4]:
        wanted += 9
        members = sorted((j for j in range(60) if region[j] == number), key=lambda j: uncertainty[j])[:wanted]
        wanted -= len(members)
        expected += members
    found = from_regions(*(torch.from_numpy(item) for item in (region, classes, uncertainty)), 4, 9, 0.5)
    assert found.tolist() == expected
    assert 20 < len(expected) <= 36


def test_clusters_are_those_of_directions_and_repeat() -> None:
    random = np.random.default_rng(0)
    group = random.integers(0, 3, 90)
    features = torch.from_numpy((np.eye(3)[group] + 0.1 * random.normal(size=(90, 3))) * random.uniform(1, 9, (90, 1)))
    found = clusters(features, torch.from_numpy(random.random(90)), 3, 5)
    assert len({(a, b) for a, b in zip(group.tolist(), found.tolist(), strict=True)}) == 3
    heavy = torch.where(torch.from_numpy(group) == 0, 1e6, 1e-6).double()
    assert len(clusters(features, heavy, 2, 0)[group == 0].unique()) == 2, "what weighs nothing takes no cluster"
    assert torch.equal(clusters(features, torch.zeros(90), 3, 5), clusters(features, torch.ones(90), 3, 5))


def test_the_surest_have_the_smallest_entropies() -> None:
    p = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(3), size=30))
    expected = sorted(range(30), key=lambda j: entropy(p[j]))[:11]
    assert surest(p, 11).tolist() == expected
    np.testing.assert_allclose(normalised_entropy(p), [entropy(row) / math.log(3) for row in p], atol=1e-12)


def test_the_memory_is_a_moving_average_of_predictions(make_view: Callable[..., Any]) -> None:
    method = AcTune(selection="memory", confidence=0.0, rounds=4, momentum_low=0.6, momentum_high=1.0, selected=0.5)
    view = make_view(method)
    memory = None
    for number in (1, 2, 3):
        method.round = number
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            p = torch.stack([method.model.eval()(u[None])[0].softmax(0) for u in view.unlabeled])
        m = 0.6 + (number - 1) / 4 * 0.4
        memory = p if memory is None else torch.stack([m * a + (1 - m) * b for a, b in zip(p, memory, strict=True)])
        method._label()
        torch.testing.assert_close(method.memory, memory, rtol=0, atol=1e-12)
        assert method.chosen.tolist() == sorted(range(POOL), key=lambda j: entropy(memory[j]))[: POOL // 2]
        assert torch.equal(method.targets, memory[method.chosen].argmax(dim=1))


def test_regions_add_to_what_was_chosen_and_choose_nothing_twice(make_view: Callable[..., Any]) -> None:
    method = fresh(METHODS[0].values[0], rounds=5)
    make_view(method)
    seen, before = 0, torch.empty(0, dtype=torch.int64)
    for number in (1, 2, 3):
        method.round = number
        method._label()
        assert torch.equal(method.chosen[:seen], before)
        assert len(method.chosen) - seen == 12
        assert len(method.chosen.unique()) == len(method.chosen)
        seen, before = len(method.chosen), method.chosen
    method.confidence, method.round = 1.0, 4
    method._label()
    assert torch.equal(method.chosen, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any, weight: float
) -> None:
    method = fresh(method, weight=weight)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=0)
    as_student(method)
    again = torch.Generator()
    again.set_state(view.generator.get_state())
    drawn = torch.randint(len(method.chosen), (2 * BATCH,), generator=again)
    u = view.task.weak(view.unlabeled[method.chosen[drawn]], again)
    n = len(method.chosen)
    share = LABELED / (LABELED + weight * n) if isinstance(method, Verips) else 1.0
    own = 1.0 - share if isinstance(method, Verips) else weight
    slow = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y.tolist(), strict=True):
        z = method.model(x[None])[0]
        slow = slow + share / BATCH * (z.exp().sum().log() - z[y])
    for x, y in zip(u, method.targets[drawn].tolist(), strict=True):
        z = method.model(x[None])[0]
        slow = slow + own / (2 * BATCH) * (z.exp().sum().log() - z[y])
    parameters = list(method.model.parameters())
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_pseudo_labels_make_the_round_trip(make_view: Callable[..., Any], method: Any) -> None:
    """Each label is that of the very example, also where a sample of the pool was looked at."""
    method = fresh(method, candidates=40)
    view = make_view(method)
    as_student(method)
    assert method.chosen.max() >= 40
    with torch.no_grad():
        of_teacher = [method.model.eval()(u[None]).argmax().item() for u in view.unlabeled]
        assert method.targets.tolist() == [of_teacher[j] for j in method.chosen.tolist()]
        if isinstance(method, Verips):
            assert method.targets.tolist() == [
                method.verifier.eval()(view.unlabeled[j][None]).argmax().item() for j in method.chosen.tolist()
            ]
    assert not method.targets.requires_grad


def test_the_teachers_loss_trains_the_verifier_and_the_students_does_not(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = Verips(uncertainty=0.98)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=0)
    method.model.train()
    expected = F.cross_entropy(method.model(labeled.weak), labeled.y)
    expected = expected + F.cross_entropy(method.verifier(labeled.weak2), labeled.y)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert len(method.parameter_groups()) == 2
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.verifier.parameters())
    assert any(
        not torch.equal(a, b) for a, b in zip(method.model.parameters(), method.verifier.parameters(), strict=True)
    )
    as_student(method)
    assert len(method.parameter_groups()) == 1
    method.verifier.zero_grad()
    method.loss(labeled, unlabeled).backward()
    assert all(parameter.grad is None for parameter in method.verifier.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_pseudo_labelled_loss_has_a_gradient(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], method: Any
) -> None:
    gradients = {}
    for weight in (1e-9, 1.0):
        one = fresh(method, weight=weight)
        labeled, unlabeled = make_batches(make_view(one), unlabeled=0)
        as_student(one)
        parts = torch.autograd.grad(one.loss(labeled, unlabeled), list(one.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    assert (gradients[1.0] - gradients[1e-9]).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any], method: Any) -> None:
    baseline, zero = adapt(Supervised()), adapt(fresh(method, weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(fresh(method)).logits[-1], baseline.logits[-1])


@pytest.mark.parametrize("method", METHODS)
def test_counted_passes(adapt: Callable[..., Any], method: Any) -> None:
    """A teacher of 5 steps, two students of 3 steps each that label the pool before."""
    networks = 2 if isinstance(method, Verips) else 1
    step, student = 3 * BATCH * networks, 3 * BATCH * (1 + 2)
    limit = 5 * step + 2 * (networks * POOL + 3 * student)
    changes = {"uncertainty": 1.0} if isinstance(method, Verips) else {}
    result = adapt(fresh(method, teacher=5 * step / limit, **changes), limit=limit)
    assert len(result.method.chosen) > 0
    assert result.counts.passes == limit
    assert result.method.round == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop_after", [3, 14, 17])
def test_a_run_killed_in_any_round_resumes_bit_equal(adapt: Callable[..., Any], method: Any, stop_after: int) -> None:
    whole = adapt(fresh(method), limit=2200)
    killed = adapt(fresh(method), limit=2200, checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(fresh(method), limit=2200)
    assert whole.method.round == resumed.method.round == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name, value in vars(whole.method).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(resumed.method, name)), name
    expected = whole.method.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.method.model.state_dict().items())
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize("method", METHODS)
def test_a_lazy_run_equals_one_with_all_examples_in_memory(
    adapt: Callable[..., Any], dropout_task: Any, method: Any
) -> None:
    lazy_task = type("LazyTask", (type(dropout_task),), {"lazy": True})()
    whole, lazy = adapt(fresh(method), dropout_task), adapt(fresh(method), lazy_task)
    assert isinstance(lazy.method.view.unlabeled, LazyPool)
    for mine, theirs in zip(whole.logits, lazy.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
