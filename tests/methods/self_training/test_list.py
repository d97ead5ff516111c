from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.adapters import Adapted
from selfbench.methods.self_training.list import List, divergence

BATCH = 8


def small(**changes: Any) -> List:
    return List(**{"rank": 3, "sessions": 2, "teacher": 0.3, "pseudo": 0.6, "warmup": 0.5, **changes})


def in_session(method: List, done: float) -> None:
    """The method as it stands when the share `done` of its first session is used."""
    method.round = method.labelled_in = 1
    method._begin()
    length = (1.0 - method.teacher) / method.sessions
    meter = method.view.meter
    meter.counts.forward = (method.teacher + done * length) * meter.budget.limit
    for adapter in method.adapters:
        adapter.reset(0.2, method.view.generator)


def through_the_step(method: List, labeled: Any, u: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """-d CE(f_eps(x), y) / d eps_j by differentiating through the step, example by example."""
    model = copy.deepcopy(method.model).eval()
    trained = {name: item for name, item in model.named_parameters() if item.requires_grad}
    slopes = []
    for example, target in zip(u, q, strict=True):
        eps = torch.zeros((), dtype=torch.float64, requires_grad=True)
        p = functional_call(model, trained, (example[None],))[0].log_softmax(dim=0)
        loss = eps * (target * (target.log() - p)).sum()
        gradients = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
        moved = {name: item - 0.1 * g for (name, item), g in zip(trained.items(), gradients, strict=True)}
        after = F.cross_entropy(functional_call(model, moved, (labeled.weak,)), labeled.y)
        slopes.append(-torch.autograd.grad(after, eps)[0])
    return torch.stack(slopes)


def test_the_weights_equal_those_of_a_step_that_is_differentiated_through(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], text_task: Any
) -> None:
    method = small()
    view = make_view(method, text_task)
    labeled, unlabeled = make_batches(view)
    in_session(method, 0.5)
    q = torch.softmax(3 * torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = through_the_step(method, labeled, unlabeled.x, q).clamp_min(0)
    assert 0 < (expected > 0).sum() < 16
    found = method._look_ahead(labeled, unlabeled.x, q)
    torch.testing.assert_close(found, expected / expected.sum(), rtol=0, atol=1e-10)
    assert found.sum().item() == pytest.approx(1.0)
    assert not found.requires_grad


def test_the_loss_is_the_weighted_divergence_from_the_teacher(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    """In a model without dropout; the two ways of weighting, loss and gradient, example by example."""
    for done in (0.1, 0.5):
        method = small(weight=2.0)
        view = make_view(method)
        labeled, unlabeled = make_batches(view)
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=view.generator, dtype=parameter.dtype))
        in_session(method, done)
        teacher = [method.guide(u[None])[0].softmax(dim=0).detach() for u in unlabeled.x]
        weights = torch.full((16,), 1 / 16, dtype=torch.float64)
        if done == 0.5:
            weights = method._look_ahead(labeled, unlabeled.x, torch.stack(teacher))
        expected = torch.zeros((), dtype=torch.float64)
        for u, q, w in zip(unlabeled.x, teacher, weights.tolist(), strict=True):
            z = method.model(u[None])[0]
            expected = expected + 2.0 * w * (q * (q.log() - z + z.exp().sum().log())).sum()
        loss = method.loss(labeled, unlabeled)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
        parameters = list(method.model.parameters())
        theirs = torch.autograd.grad(expected, parameters)
        mine = torch.autograd.grad(loss, parameters)
        assert max(part.abs().max().item() for part in mine) > 1e-4
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.guide.parameters())


def test_a_divergence_is_zero_for_the_targets_themselves() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 9.0]], dtype=torch.float64)
    q = logits.softmax(dim=1)
    assert divergence(q, logits).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    sure = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert divergence(sure, logits[:1]).item() == pytest.approx(F.cross_entropy(logits[:1], torch.tensor([0])).item())


def test_adapters_and_the_classifier_are_trained_and_nothing_else(
    adapt: Callable[..., Any], make_view: Callable[..., Any], text_task: Any
) -> None:
    before = small()
    make_view(before, text_task)
    before = before.model.state_dict()
    after = adapt(small(), text_task).method.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if name.endswith((".down", ".up")) or name.startswith("head.")}
    assert len(moved) == 2 * 2 * 2 + 2


def test_an_adapter_adds_to_the_output_of_its_layer(make_view: Callable[..., Any], text_task: Any) -> None:
    method = small()
    view = make_view(method, text_task)
    plain = view.new_model().eval()
    adapters = [module for module in method.model.modules() if isinstance(module, Adapted)]
    assert len(adapters) == 4
    for adapter in adapters:
        torch.nn.init.zeros_(adapter.up)
    x = view.unlabeled[:5]
    torch.testing.assert_close(method.model.eval()(x), plain(x), rtol=0, atol=1e-12)
    h = torch.randn(3, adapters[0].layer.in_features, dtype=torch.float64)
    torch.nn.init.normal_(adapters[0].up)
    out = adapters[0].layer(h)
    expected = out + torch.stack([adapters[0].up @ (adapters[0].down @ row) for row in out])
    torch.testing.assert_close(adapters[0](h), expected, rtol=0, atol=1e-12)


def test_a_session_begins_with_the_model_as_teacher_and_a_new_student(
    make_view: Callable[..., Any], text_task: Any
) -> None:
    method = small()
    make_view(method, text_task)
    with torch.no_grad():
        method.model.head.weight.add_(1.0)
    trained = {name: value.clone() for name, value in method.model.state_dict().items()}
    method._begin()
    assert all(torch.equal(value, trained[name]) for name, value in method.guide.state_dict().items())
    assert torch.equal(method.model.head.weight, method.first.head.weight)
    assert not torch.equal(method.model.head.weight, method.guide.head.weight)


def test_weight_zero_without_adapters_is_the_supervised_baseline_bit_by_bit(
    adapt: Callable[..., Any], text_task: Any
) -> None:
    baseline, zero = adapt(Supervised(), text_task), adapt(small(weight=0.0, rank=0), text_task)
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert not np.array_equal(adapt(small(rank=0), text_task).logits[-1], baseline.logits[-1])


def test_counted_passes(make_view: Callable[..., Any], make_batches: Callable[..., Any], text_task: Any) -> None:
    for done, expected in ((0.1, 4 * 16), (0.5, (4 + 2) * 16 + 3 * BATCH)):
        method = small()
        view = make_view(method, text_task, progress=0.0)
        labeled, unlabeled = make_batches(view)
        in_session(method, done)
        view.meter.counts.forward = 0.0
        method._done = lambda done=done: done  # type: ignore[method-assign]
        method.loss(labeled, unlabeled).backward()
        assert view.meter.counts.passes == expected


@pytest.mark.parametrize("stop_after", [3, 9, 14, 19])
def test_a_run_killed_in_any_session_resumes_bit_equal(
    adapt: Callable[..., Any], text_task: Any, stop_after: int
) -> None:
    whole = adapt(small(), text_task, limit=1200)
    killed = adapt(small(), text_task, limit=1200, checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(small(), text_task, limit=1200)
    assert whole.method.round == resumed.method.round == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("model", "guide"):
        expected = getattr(whole.method, name).state_dict()
        found = getattr(resumed.method, name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
