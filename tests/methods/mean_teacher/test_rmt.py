from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.views import random_views
from selfbench.methods.mean_teacher.rmt import Rmt, RmtReplay, contrastive_loss, nearest
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source

REPLAY = RmtReplay(warmup_images=24, source_batch=12, projection=8)
METHODS = [Rmt(projection=8), Rmt(projection=0, optimizer="sgd"), REPLAY]


def _log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(value - top) for value in row)) + top
    return [value - total for value in row]


def _sce(a: list[float], b: list[float]) -> float:
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    return -0.5 * sum(math.exp(q) * p + math.exp(p) * q for p, q in zip(log_p, log_q, strict=True))


def _contrast(groups: list[list[list[float]]], tau: float) -> float:
    """The loss by loops: groups[i] holds the three projections of image i."""

    def unit(v: list[float]) -> list[float]:
        return [value / math.hypot(*v) for value in v]

    items = [(i, unit(v)) for i, group in enumerate(groups) for v in group]
    total = 0.0
    for a, (image, anchor) in enumerate(items):
        scores = {
            b: sum(x * y for x, y in zip(anchor, v, strict=True)) / tau for b, (_, v) in enumerate(items) if b != a
        }
        log_p = dict(zip(scores, _log_softmax(list(scores.values())), strict=True))
        positives = [b for b in scores if items[b][0] == image]
        total -= sum(log_p[b] for b in positives) / len(positives)
    return total / len(items)


def _split(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    *body, classifier = model.children()
    for layer in body:
        x = layer(x)
    return classifier(x), x


@pytest.mark.parametrize("method", [Rmt(projection=8, lr=0.01), dataclasses.replace(REPLAY, warmup_images=0, lr=0.01)])
def test_two_steps_equal_a_loop_over_single_images(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, method: Any
) -> None:
    method = dataclasses.replace(method, optimizer="sgd", self_training=0.7, contrast=0.4)
    method.setup(source_model(), source)
    student, teacher, projector = (copy.deepcopy(m) for m in (method.model, method.teacher, method.projector))
    parameters = [*student.parameters(), *projector.parameters()]
    velocity = [torch.zeros_like(item) for item in parameters]
    views, draws = torch.Generator(), torch.Generator()
    views.set_state(method.generator.get_state())
    replays = isinstance(method, RmtReplay)
    if replays:
        draws.set_state(method.sampler.get_state())
    for x in (images[:9], images[9:18]):
        view = random_views(x, views)[0]
        (y, f), (y_view, f_view) = _split(student, x), _split(student, view)
        with torch.no_grad():
            y_teacher = teacher(x)
        closest = []
        for feature in f.detach():
            cosines = [torch.dot(feature, c) / feature.norm() / c.norm() for c in method.prototypes]
            c = method.prototypes[int(np.argmax(cosines))]
            closest.append(c if replays else c / c.norm() * feature.norm())
        z = [[projector(item) for item in group] for group in zip(closest, f, f_view, strict=True)]
        value = 0.4 * _contrast([[v.tolist() for v in group] for group in z], 0.1)
        for rows in zip(y.tolist(), y_view.tolist(), y_teacher.tolist(), strict=True):
            value += 0.7 * 0.5 * (_sce(rows[0], rows[2]) + _sce(rows[1], rows[2])) / len(x)
        # The gradient of the same loss, put together from its parts by autograd.
        q = y_teacher.softmax(1)
        loss = 0.0
        for logits in (y, y_view):
            p = logits.softmax(1)
            loss = loss - 0.7 * 0.25 * (q * p.log() + p * q.log()).sum(1).mean()
        stacked = torch.cat([torch.stack([group[k] for group in z]) for k in range(3)])
        loss = loss + 0.4 * contrastive_loss(stacked, len(x), 0.1)
        assert loss.item() == pytest.approx(value, rel=1e-4)
        if replays:
            chosen = torch.randint(60, (12,), generator=draws)
            log_p = student(source.images(chosen)).log_softmax(1)
            loss = loss - torch.stack([log_p[i, source.labels[j]] for i, j in enumerate(chosen)]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, v, g in zip(parameters, velocity, gradients, strict=True):
                v.mul_(0.9).add_(g)
                parameter -= 0.01 * (g + 0.9 * v)
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.copy_(0.999 * mine + 0.001 * theirs)
        torch.testing.assert_close(method.predict(x), (y + y_teacher).detach(), rtol=1e-4, atol=1e-4)
    for mine, theirs in ((method.model, student), (method.teacher, teacher), (method.projector, projector)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_nearest_prototype_is_by_angle_and_not_by_length() -> None:
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    chosen = nearest(torch.tensor([[3.0, 1.0], [1.0, 1.1]]), prototypes)
    assert torch.equal(chosen, prototypes)


def test_source_prototypes_are_class_means(source_model: Callable[..., nn.Module], source: Source) -> None:
    method = RmtReplay(warmup_images=0, source_batch=60)
    method.setup(source_model(), source)
    with torch.no_grad():
        _, features = _split(method.model, source.images(torch.arange(60)))
    expected = torch.stack([features[source.labels == k].mean(0) for k in range(4)])
    torch.testing.assert_close(method.prototypes, expected, rtol=1e-4, atol=1e-5)


def test_a_class_without_source_images_is_named(source_model: Callable[..., nn.Module], source: Source) -> None:
    source.labels = source.labels.clamp(max=2)
    with pytest.raises(UsageError, match="class 3 has no source image"):
        RmtReplay(warmup_images=0).setup(source_model(), source)


def test_warm_up_moves_student_and_teacher_at_a_rising_rate(
    source_model: Callable[..., nn.Module], source: Source
) -> None:
    method = RmtReplay(lr=0.1, optimizer="sgd", warmup_images=12, source_batch=12)
    fresh = source_model()
    method.setup(source_model(), source)
    moved = [(a - b).abs().max() for a, b in zip(method.model.parameters(), fresh.parameters(), strict=True)]
    assert max(moved) > 1e-4
    for t, a, b in zip(method.teacher.parameters(), method.model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(t, 0.999 * b + 0.001 * a)
    assert method.updater.param_groups[0]["lr"] == pytest.approx(0.1)
    long = RmtReplay(lr=0.1, optimizer="sgd", warmup_images=48, source_batch=12)
    long.setup(source_model(), source)
    assert long.updater.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("part", ["self_training", "contrast"])
def test_each_part_has_a_gradient_on_all_that_it_should_train(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, part: str
) -> None:
    weights = {"self_training": 0.0, "contrast": 0.0} | {part: 1.0}
    method = Rmt(projection=8, **weights)
    method.setup(source_model(), source)
    method.predict(images)
    classifier = {id(item) for item in method.model[-1].parameters()}
    for parameter in method.model.parameters():
        reached = part == "self_training" or id(parameter) not in classifier
        assert (parameter.grad.abs().max() > 0) == reached
    for parameter in method.projector.parameters():
        assert (parameter.grad.abs().max() > 0) == (part == "contrast")
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_weights_zero_are_batch_statistics(stream: Callable[..., Any]) -> None:
    zero, norm = stream(Rmt(self_training=0.0, contrast=0.0)), stream(Norm())
    for mine, theirs in zip(zero.logits, norm.logits, strict=True):
        np.testing.assert_array_equal(mine, 2 * theirs)
    replay = stream(RmtReplay(self_training=0.0, contrast=0.0, replay=0.0, warmup_images=0))
    for mine, theirs in zip(replay.logits, norm.logits, strict=True):
        np.testing.assert_array_equal(mine, 2 * theirs)


def test_first_prediction_precedes_any_update(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method, norm = Rmt(lr=0.1), Norm()
    method.setup(source_model(), source)
    norm.setup(source_model(), source)
    before = norm.predict(images)
    assert torch.equal(method.predict(images), 2 * before)
    assert not torch.equal(method.predict(images), 2 * before)
    method.model.eval()
    with torch.no_grad():
        assert torch.equal(method.predictor()(images), method.model(images) + method.teacher(images))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resumed_equals_uninterrupted(stream: Callable[..., Any], method: Any) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Rmt(), 40 * 7),
        (dataclasses.replace(REPLAY, replay=0.0, warmup_images=0), 60 + 40 * 7),
        (REPLAY, 60 + 24 * 4 + 40 * 7 + 5 * 12 * 3),
    ],
    ids=str,
)
def test_counted_passes(stream: Callable[..., Any], method: Any, passes: int) -> None:
    assert stream(dataclasses.replace(method)).counts.passes == pytest.approx(passes, rel=1e-9)


def test_group_norm_model_runs(stream: Callable[..., Any]) -> None:
    result = stream(Rmt(projection=8), norm=lambda channels: nn.GroupNorm(1, channels))
    assert all(np.isfinite(logits).all() for logits in result.logits)
