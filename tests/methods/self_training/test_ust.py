from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.ust import Ust, balanced, bald
from selfbench.suite.protocols.pool import LazyPool

POOL, BATCH = 68, 8
HEAD = 12 * 4 + 4
MODEL = 6 * 12 + 12 + 2 * 12 + HEAD


def small(**changes: Any) -> Ust:
    return Ust(**{"passes": 3, "ratio": 2, "rounds": 2, "selected": 0.5, **changes})


def plain(inputs: Tensor, generator: Any) -> Tensor:
    return inputs


def as_student(method: Ust) -> None:
    """The method as it stands in its first round, on the labels of its untrained model."""
    method.round = method.labelled_in = 1
    method._label()
    method.model.train()


def test_bald_equals_a_loop_over_examples() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=(5, 20))
    p[:, 0] = [0.0, 1.0, 0.0]  # certain and agreed upon
    p[:, 1] = np.eye(3)[[0, 0, 1, 1, 2]]  # certain, but not agreed upon
    found = bald(torch.from_numpy(p))

    def entropy(q: np.ndarray) -> float:
        return -sum(x * np.log(x) for x in q if x > 0)

    for i in range(20):
        expected = entropy(p[:, i].mean(0)) - np.mean([entropy(q) for q in p[:, i]])
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    assert found[0] == 0
    assert found.argmax() == 1


def test_classes_are_drawn_equally_and_in_proportion_to_the_chance() -> None:
    classes = torch.tensor([0] * 6 + [1] * 2 + [3] * 4)
    chance = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(12)
    for _ in range(3000):
        rows = balanced(classes, chance, 5, 3, generator)
        of_first, of_second = rows[:3], rows[3:]
        assert len(rows) == 6
        assert len(of_first.unique()) == 3
        assert (classes[of_second] == 1).all()
        first[of_first[0]] += 1
    torch.testing.assert_close(first[:6] / 3000, chance[:6] / 10, rtol=0, atol=0.03)
    assert len(balanced(classes, torch.zeros(12), 5, 3, generator)) == 0


def test_weights_are_those_of_the_variance_under_dropout(make_view: Callable[..., Any]) -> None:
    """The passes with dropout, made again one example and one mask at a time."""
    method = small()
    view = make_view(method)
    method.model.train()
    hooks = len(method.model[-1]._forward_pre_hooks)
    state = view.generator.get_state()
    torch.manual_seed(3)
    method._label()
    assert not method.model[0].training
    assert len(method.model[-1]._forward_pre_hooks) == hooks
    torch.manual_seed(3)
    *body, head = method.model.children()
    with torch.no_grad():
        features = torch.nn.Sequential(*body)(view.unlabeled)
        logits = head(features)
        samples = torch.stack([head(F.dropout(features, 0.5)).softmax(1) for _ in range(3)])
    uncertain, classes = bald(samples), logits.argmax(1)
    view.generator.set_state(state)
    rows = balanced(classes, 1 - uncertain, 4, int(0.5 * POOL) // 4, view.generator)
    assert torch.equal(method.chosen, rows)
    assert torch.equal(method.targets, classes[rows])
    for j, label, weight in zip(rows.tolist(), method.targets.tolist(), method.weights.tolist(), strict=True):
        p = samples[:, j, label]
        assert weight == pytest.approx(-0.1 * np.log(((p - p.mean()) ** 2).mean().item() + 1e-10), abs=1e-12)
    assert method.weights.min() > 0.1 * np.log(4)  # the variance of a probability is at most 1/4


def test_hard_sampling_prefers_what_the_model_does_not_know(make_view: Callable[..., Any]) -> None:
    chosen = {}
    for sampling in ("easy", "hard"):
        method = small(sampling=sampling, selected=0.2, passes=20)
        make_view(method)
        torch.manual_seed(0)
        values = []
        for _ in range(30):
            method._label()
            values.append(method.weights.mean().item())
        chosen[sampling] = np.mean(values)
    assert chosen["easy"] > chosen["hard"]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], weight: float
) -> None:
    method = small(weight=weight)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=0)
    as_student(method)
    again = torch.Generator()
    again.set_state(view.generator.get_state())
    drawn = torch.randint(len(method.chosen), (2 * BATCH,), generator=again)
    u = view.task.weak(view.unlabeled[method.chosen[drawn]], again)
    *body, head = method.model.children()
    features = torch.nn.Sequential(*body)(torch.cat([labeled.weak, u]))
    torch.manual_seed(4)
    kept = torch.bernoulli(torch.full_like(features, 0.5))
    slow = torch.zeros((), dtype=torch.float64)
    targets = [*labeled.y.tolist(), *method.targets[drawn].tolist()]
    weights = [1 / BATCH] * BATCH + [weight * w / (2 * BATCH) for w in method.weights[drawn].tolist()]
    for h, mask, y, w in zip(features, kept, targets, weights, strict=True):
        z = head(h * mask / 0.5)
        slow = slow + w * (z.exp().sum().log() - z[y])
    parameters = list(method.model.parameters())
    expected = torch.autograd.grad(slow, parameters)
    torch.manual_seed(4)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_pseudo_labelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    gradients = {}
    for weight in (1e-9, 1.0, 3.0):
        method = small(weight=weight)
        view = make_view(method)
        labeled, unlabeled = make_batches(view, unlabeled=0)
        torch.manual_seed(1)
        as_student(method)
        torch.manual_seed(2)
        parts = torch.autograd.grad(method.loss(labeled, unlabeled), list(method.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[1e-9]
    assert own.abs().max() > 1e-3
    torch.testing.assert_close(gradients[3.0] - gradients[1e-9], 3 * own, rtol=0, atol=1e-8)


def test_pseudo_labels_make_the_round_trip(make_view: Callable[..., Any], make_batches: Callable[..., Any]) -> None:
    """What a step trains on is an example of the pool, with the label that the teacher gave to that very example.

    A public re-implementation takes places in a sample of the pool for places in the pool: its labels stand beside
    random texts. The sample of 40 of 68 here would show it.
    """
    method = small(dropout=0.05, candidates=40)
    view = make_view(method)
    labeled, unlabeled = make_batches(view, unlabeled=0)
    as_student(method)
    with torch.no_grad():
        of_teacher = [method.model.eval()(u[None]).argmax().item() for u in view.unlabeled]
    assert method.chosen.max() >= 40
    assert method.targets.tolist() == [of_teacher[j] for j in method.chosen.tolist()]
    view.task.weak, seen = plain, []
    hook = method.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(5)
    loss = method.loss(labeled, unlabeled)
    hook.remove()
    places = [next(j for j in range(POOL) if torch.equal(view.unlabeled[j], row)) for row in seen[0][BATCH:]]
    weight = dict(zip(method.chosen.tolist(), method.weights.tolist(), strict=True))
    *body, head = method.model.children()
    torch.manual_seed(5)
    logits = head(F.dropout(torch.nn.Sequential(*body)(seen[0]), 0.05))

    def with_labels(labels: list[int]) -> float:
        own = F.cross_entropy(logits[BATCH:], torch.tensor(labels), reduction="none")
        own = (own * torch.tensor([weight[j] for j in places], dtype=torch.float64)).mean()
        return (F.cross_entropy(logits[:BATCH], labeled.y) + own).item()

    assert loss.item() == pytest.approx(with_labels([of_teacher[j] for j in places]), abs=1e-12)
    assert loss.item() != pytest.approx(with_labels([of_teacher[(j + 1) % POOL] for j in places]), abs=1e-3)


def test_dropout_of_the_model_acts_in_the_passes_and_statistics_stay(
    make_view: Callable[..., Any], dropout_task: Any
) -> None:
    method = small(dropout=0.05)
    view = make_view(method, dropout_task, progress=0.0)
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    inputs = view.unlabeled[:10]
    _, samples = method._predictions(inputs)
    assert view.meter.counts.passes == 10 * (1 + 3)
    assert ((samples[0] - samples[1]).abs().amax(dim=1) > 1e-4).sum() > 5
    assert all(torch.equal(value, before[name]) for name, value in method.model.state_dict().items())


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(small(weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(small()).logits[-1], baseline.logits[-1])


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    """A teacher of 5 steps, two students of 3 steps each; before each, the pool once and three times with dropout."""
    step, student = 3 * BATCH, 3 * BATCH * (1 + 2)
    limit = 5 * step + 2 * (POOL * (1 + 3) + 3 * student)
    result = adapt(small(teacher=5 * step / limit), limit=limit)
    assert result.counts.passes == limit
    assert result.method.round == 2


def test_without_dropout_of_its_own_only_the_classifier_passes_again(make_view: Callable[..., Any]) -> None:
    method = small()
    view = make_view(method, progress=0.0)
    method._label()
    assert view.meter.counts.passes == pytest.approx(POOL * (1 + 3 * HEAD / MODEL))


@pytest.mark.parametrize("stop_after", [3, 15, 17, 20, 23])
def test_a_run_killed_in_any_round_resumes_bit_equal(adapt: Callable[..., Any], stop_after: int) -> None:
    whole = adapt(small(), limit=2500)
    killed = adapt(small(), limit=2500, checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(small(), limit=2500)
    assert whole.method.round == resumed.method.round == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    expected = whole.method.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.method.model.state_dict().items())
    for name in ("chosen", "targets", "weights"):
        assert torch.equal(getattr(whole.method, name), getattr(resumed.method, name))
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


def test_a_lazy_run_equals_one_with_all_examples_in_memory(adapt: Callable[..., Any], dropout_task: Any) -> None:
    lazy_task = type("LazyTask", (type(dropout_task),), {"lazy": True})()
    whole, lazy = adapt(small(), dropout_task), adapt(small(), lazy_task)
    assert isinstance(lazy.method.view.unlabeled, LazyPool)
    for mine, theirs in zip(whole.logits, lazy.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
