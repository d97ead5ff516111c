from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.iabn import use_instance_aware_norm
from selfbench.methods.self_training.note import NOTE
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source


class SlowReservoir:
    """The paper's algorithm 1 on lists of image numbers, one per class."""

    def __init__(self, capacity: int, classes: int) -> None:
        self.capacity, self.items, self.counts = capacity, [[] for _ in range(classes)], [0] * classes

    def add(self, number: int, label: int, u: list[float]) -> None:
        self.counts[label] += 1
        sizes = [len(items) for items in self.items]
        if sum(sizes) >= self.capacity:
            largest = [k for k in range(len(sizes)) if sizes[k] == max(sizes)]
            if label not in largest:
                victims = self.items[largest[math.floor(u[0] * len(largest))]]
            elif u[2] <= sizes[label] / self.counts[label]:
                victims = self.items[label]
            else:
                return
            victims.pop(math.floor(u[1] * len(victims)))
        self.items[label].append(number)


def _setup(method: NOTE, classes: int) -> NOTE:
    method.setup(
        nn.Sequential(nn.BatchNorm2d(3)), Source(classes, torch.device("cpu"), torch.Generator().manual_seed(0))
    )
    return method


@pytest.mark.parametrize(("capacity", "classes"), [(8, 4), (9, 2), (12, 30)])
def test_memory_equals_the_slow_reservoir(capacity: int, classes: int) -> None:
    random = np.random.default_rng(capacity)
    method, slow = _setup(NOTE(capacity=capacity, source_steps=0), classes), SlowReservoir(capacity, classes)
    for number in range(500):
        label = int(random.integers(classes)) if number % 100 < 50 else int(random.integers(2))
        u = random.random(3).tolist()
        method._ask(label, u)
        slow.add(number, label, u)
        held = sorted((k, other) for k, items in enumerate(slow.items) for other in items)
        assert sorted(zip(method.labels, method.arrivals, strict=True)) == held
    assert len(method.labels) <= capacity


def test_within_a_class_it_is_a_reservoir() -> None:
    """Of one class alone, every image of the past is held equally often."""
    held = np.zeros(40)
    for trial in range(600):
        method = _setup(NOTE(capacity=8, source_steps=0), 2)
        random = np.random.default_rng(trial)
        for _ in range(40):
            method._ask(1, random.random(3).tolist())
        held[method.arrivals] += 1
    assert np.abs(held / 600 - 8 / 40).max() < 0.07


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """What the memory held at each update, by the number of images seen."""
    held: dict[int, list[int]] = {}
    update = NOTE._update

    def recorded(self: NOTE) -> None:
        held[self.seen] = list(self.arrivals)
        update(self)

    monkeypatch.setattr(NOTE, "_update", recorded)
    return held


def test_stream_equals_the_algorithm_by_hand(
    source_model: Callable[..., nn.Module], source: Source, snapshots: dict[int, list[int]]
) -> None:
    method = NOTE(lr=0.01, capacity=8, interval=6, momentum=0.2, source_steps=0, k=1.0)
    method.setup(source_model().double(), source)
    model = source_model().double().requires_grad_(False)
    wraps = use_instance_aware_norm(model, 1.0)
    theta = [weight.requires_grad_(True) for wrap in wraps for weight in wrap.parameters()]
    adam = torch.optim.Adam(theta, lr=0.01)
    seen: list[Tensor] = []
    batches = torch.rand(3, 10, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for x in batches:
        expected = []
        got = method.predict(x)
        for image in x:
            with torch.no_grad():
                expected.append(model(image[None])[0])  # each image alone, by the model as it stands
            seen.append(image)
            if len(seen) % 6 == 0:
                # The memory is tested above; here it is taken as the method has it, at the time of its update.
                data = torch.stack([seen[i] for i in snapshots[len(seen)]])
                for wrap in wraps:
                    wrap.momentum = 0.2
                    wrap.train()
                p = model(data).softmax(1)
                for wrap in wraps:
                    wrap.eval()
                adam.zero_grad()
                (-(p * p.log()).sum(1)).mean().backward()
                adam.step()
        torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-9)


def test_memory_holds_the_images_it_says(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, snapshots: dict[int, list[int]]
) -> None:
    method = NOTE(capacity=8, interval=7, source_steps=0)
    method.setup(source_model(), source)
    for part in images.split(9):
        method.predict(part)
    assert len(snapshots) == 5
    assert torch.equal(method.memory, images[method.arrivals])


def test_only_scales_shifts_and_statistics_change(
    stream: Callable[..., Any], source_model: Callable[..., nn.Module], images: Tensor
) -> None:
    result = stream(NOTE(capacity=8, interval=10, lr=0.01, source_steps=0))
    before = source_model()
    use_instance_aware_norm(before, 4.0)
    expected = before.state_dict()
    changed = {
        name for name, value in result.method.model.state_dict().items() if not torch.equal(value, expected[name])
    }
    names = ("layer.weight", "layer.bias", "mean", "var")
    assert changed == {f"{layer}.{name}" for layer in ("1", "3.1") for name in names}
    assert result.counts.passes == len(images) + 4 * 3 * 8


def test_source_training_costs_what_it_says_and_trains_all(
    stream: Callable[..., Any], source_model: Callable[..., nn.Module], images: Tensor
) -> None:
    without, trained = stream(NOTE(source_steps=0)), stream(NOTE(source_steps=2))
    assert trained.counts.passes - without.counts.passes == 2 * 384
    before = dict(source_model().named_parameters())
    for name, weight in trained.method.model.named_parameters():
        assert not torch.equal(weight, before[name.replace("layer.", "")]), name
    assert not any(module.training for module in trained.method.model.modules())
    assert sum(weight.requires_grad for weight in trained.method.model.parameters()) == 4


def test_source_training_lowers_the_source_loss(source_model: Callable[..., nn.Module], source: Source) -> None:
    losses = []
    for steps in (0, 20):
        method = NOTE(source_steps=steps, source_lr=0.05)
        method.setup(source_model(), source)
        with torch.no_grad():
            logits = method.model(source.images(torch.arange(60)))
        losses.append(nn.functional.cross_entropy(logits, source.labels).item())
    assert losses[1] < losses[0]


def test_without_source_data_it_refuses(source_model: Callable[..., nn.Module], source: Source) -> None:
    bare = dataclasses.replace(source, images=None, labels=None)
    with pytest.raises(UsageError, match="source images"):
        NOTE().setup(source_model(), bare)
    NOTE(source_steps=0).setup(source_model(), bare)


def test_resumed_equals_uninterrupted(stream: Callable[..., Any]) -> None:
    method = NOTE(capacity=8, interval=7, lr=0.01, source_steps=2)
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    assert len(killed.logits) == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts.passes == resumed.counts.passes
