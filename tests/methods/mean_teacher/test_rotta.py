from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.source import SourceModel
from selfbench.methods.common.views import random_views
from selfbench.methods.mean_teacher.rotta import RoTTA
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source


class SlowMemory:
    """The paper's memory as lists of dictionaries, one per class; ages are counted, not derived."""

    def __init__(self, capacity: int, classes: int) -> None:
        self.capacity, self.items = capacity, [[] for _ in range(classes)]

    def score(self, age: int, doubt: float) -> float:
        return 1 / (1 + math.exp(-age / self.capacity)) + doubt / math.log(len(self.items))

    def add(self, number: int, label: int, doubt: float) -> None:
        sizes = [len(items) for items in self.items]
        fits = sizes[label] < self.capacity / len(self.items)
        if fits and sum(sizes) < self.capacity:
            enters = True
        else:
            among = [k for k, size in enumerate(sizes) if size == max(sizes)] if fits else [label]
            held = [(k, item) for k in among for item in self.items[k]]
            worst = max(held, key=lambda pair: self.score(pair[1]["age"], pair[1]["doubt"]))
            enters = self.score(worst[1]["age"], worst[1]["doubt"]) > self.score(0, doubt)
            if enters:
                self.items[worst[0]].remove(worst[1])
        if enters:
            self.items[label].append({"number": number, "doubt": doubt, "age": 0})
        for items in self.items:
            for item in items:
                item["age"] += 1


def _slow_forward(model: nn.Sequential, x: Tensor, alpha: float | None) -> Tensor:
    """The tiny model with batch norm by hand; with `alpha` the running statistics move first."""

    def norm(layer: Any, h: Tensor) -> Tensor:
        mean, var = layer.running_mean, layer.running_var
        if alpha is not None:
            batch = h.mean((0, 2, 3))
            spread = ((h - batch[:, None, None]) ** 2).mean((0, 2, 3))
            mean, var = (1 - alpha) * mean + alpha * batch, (1 - alpha) * var + alpha * spread
            layer.running_mean, layer.running_var = mean.detach(), var.detach()
        h = (h - mean[:, None, None]) / (var + layer.eps).sqrt()[:, None, None]
        return h * layer.weight[:, None, None] + layer.bias[:, None, None]

    h = norm(model[1], model[0](x)).relu()
    return model[6](norm(model[3][1], model[3][0](h)).mean((2, 3)))


def test_stream_equals_the_algorithm_by_hand(source_model: Callable[..., nn.Module], source: Source) -> None:
    method = RoTTA(lr=0.01, capacity=8, interval=6, nu=0.1, alpha=0.2)
    method.setup(source_model().double(), source)
    student, teacher = source_model().double(), source_model().double()
    theta = [student[1].weight, student[1].bias, student[3][1].weight, student[3][1].bias]
    averages = [teacher[1].weight, teacher[1].bias, teacher[3][1].weight, teacher[3][1].bias]
    adam = torch.optim.Adam(theta, lr=0.01)
    memory, seen, updates = SlowMemory(8, 4), [], 0
    generator = torch.Generator()
    generator.set_state(source.generator.get_state())
    batches = torch.rand(4, 10, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for x in batches:
        with torch.no_grad():
            expected = _slow_forward(teacher, x, None)
        for image, p in zip(x, expected.softmax(1), strict=True):
            doubt = -(p * (p + 1e-6).log()).sum().item()
            memory.add(len(seen), int(p.argmax()), doubt)
            seen.append(image)
            if len(seen) % 6 == 0:
                held = [item for items in memory.items for item in items]
                data = torch.stack([seen[item["number"]] for item in held])
                age = torch.tensor([item["age"] / 8 for item in held], dtype=torch.float64)
                view = random_views(data, generator)[0]
                with torch.no_grad():
                    target = _slow_forward(teacher, data, 0.2).softmax(1)
                losses = -(target * _slow_forward(student, view, 0.2).log_softmax(1)).sum(1)
                weight = (-age).exp() / (1 + (-age).exp())
                adam.zero_grad()
                (losses * weight).mean().backward()
                adam.step()
                with torch.no_grad():
                    for average, current in zip(averages, theta, strict=True):
                        average.copy_(0.9 * average + 0.1 * current)
                updates += 1
        torch.testing.assert_close(method.predict(x), expected, rtol=0, atol=1e-9)
    assert updates == 6
    for mine, theirs in ((method.model, student), (method.teacher, teacher)):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("capacity", "classes"), [(8, 4), (7, 3), (5, 20), (64, 10)])
def test_memory_equals_lists_of_items(capacity: int, classes: int) -> None:
    random = np.random.default_rng(capacity)
    method = RoTTA(capacity=capacity)
    method.setup(nn.Sequential(nn.BatchNorm2d(3)), Source(classes, torch.device("cpu"), torch.Generator()))
    slow = SlowMemory(capacity, classes)
    for number in range(400):
        # Long runs of few classes: every branch is taken.
        label = int(random.integers(classes)) if number % 100 < 50 else int(random.integers(min(2, classes)))
        doubt = float(random.random() * math.log(classes))
        method._ask(label, doubt)
        slow.add(number, label, doubt)
        held = sorted(
            (k, item["number"], number + 1 - item["age"]) for k, items in enumerate(slow.items) for item in items
        )
        mine = sorted(zip(method.labels, method.arrivals, method.arrivals, strict=True))
        assert mine == held
    assert len(method.labels) <= capacity


def test_the_cut_into_batches_moves_only_predictions_after_an_update(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    """Before the first update the batch size does not matter: the teacher normalises by running statistics."""
    whole, single, base = RoTTA(), RoTTA(), SourceModel()
    for method in (whole, single, base):
        method.setup(source_model(), source)
    frozen = base.predict(images)
    assert torch.equal(whole.predict(images), frozen)
    parts = torch.cat([single.predict(image[None]) for image in images])
    torch.testing.assert_close(parts, frozen, rtol=0, atol=1e-5)
    assert (single.labels, single.arrivals) == (whole.labels, whole.arrivals)


def test_only_scales_shifts_and_statistics_change(
    stream: Callable[..., Any], source_model: Callable[..., nn.Module], images: Tensor
) -> None:
    result = stream(RoTTA(capacity=8, interval=10, nu=0.1, lr=0.01))
    before = source_model().state_dict()
    moved = {f"{layer}.{name}" for layer in ("1", "3.1") for name in ("weight", "bias", "running_mean", "running_var")}
    for model in (result.method.model, result.method.teacher):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == moved
    trained = [name for name, weight in result.method.model.named_parameters() if weight.grad is not None]
    assert trained == ["1.weight", "1.bias", "3.1.weight", "3.1.bias"]
    assert all(weight.grad is None for weight in result.method.teacher.parameters())
    assert 0 < len(result.method.labels) <= 8
    # One pass to predict; 1 of the teacher and 3 of the student per memorised image in each of the four updates.
    assert len(images) < result.counts.passes <= len(images) + 4 * 4 * 8


def test_rate_zero_and_no_share_of_the_batch_are_the_source_model(stream: Callable[..., Any]) -> None:
    frozen = stream(RoTTA(capacity=8, interval=10, alpha=0.0, nu=1e-4, lr=1e-5))
    base = stream(SourceModel())
    for mine, theirs in zip(frozen.logits, base.logits, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_a_full_memory_costs_five_passes_per_image(source_model: Callable[..., nn.Module], source: Source) -> None:
    counted: list[int] = []
    model = source_model()
    model.register_forward_pre_hook(lambda module, inputs: counted.append(len(inputs[0])))
    method = RoTTA(capacity=8, interval=8)
    method.setup(model, source)
    # Every class asks as often as the others.
    labels = iter(range(1000))
    method._ask = lambda label, doubt: RoTTA._ask(method, next(labels) % 4, doubt)  # type: ignore[method-assign]
    method.predict(torch.rand(32, 3, 8, 8))
    assert counted == [32] + [8, 8] * 4


def test_resumed_equals_uninterrupted(stream: Callable[..., Any]) -> None:
    method = RoTTA(capacity=8, interval=7, nu=0.1, lr=0.01)
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    assert len(killed.logits) == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts.passes == resumed.counts.passes


def test_a_model_without_source_statistics_is_refused(source: Source) -> None:
    with pytest.raises(UsageError, match="statistics"):
        RoTTA().setup(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), source)
