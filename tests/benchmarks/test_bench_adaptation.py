"""Semi-supervised training: what the harness and a method's bookkeeping add to a step, and what strong views cost.

pytest tests/benchmarks/test_bench_adaptation.py -m benchmark_session -s

Random pixels in the shapes of `cifar10-jpeg-250`, one thread, seconds of the processor; both sides by turns.
"""

from __future__ import annotations

import copy
import dataclasses
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional as F

from selfbench.suite import registry
from selfbench.suite.meter import Meter
from selfbench.suite.protocols.adaptation import Split
from selfbench.suite.protocols.adaptation_loop import View, _Average
from selfbench.suite.protocols.context import Context
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire
from selfbench.tasks.images.cifar10_jpeg import Cifar10Jpeg250
from selfbench.tasks.images.color_augmentations import strong_view

pytestmark = pytest.mark.benchmark_session
PAIRS = 9
STEPS = 2
LIMIT = 1e9
METHODS = ("fixmatch", "flexmatch", "freematch", "softmatch")
"""Methods whose step is FixMatch's arithmetic; what else they do is bookkeeping."""


class Task(Cifar10Jpeg250):
    """No evaluation, averaged weights as in the task."""

    recipe = dataclasses.replace(Cifar10Jpeg250.recipe, points=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_view(tmp_path: Path) -> Iterator[Callable[[Any], View]]:
    """make_view(method): the real view of a run in whose pool lie 19,500 images, the method set up in it."""
    ours, theirs = socket.socketpair()

    def make(method: Any) -> View:
        spec = RunSpec(
            task=TaskRef(name="timed", version="1"),
            method=MethodRef(name="timed", version="1"),
            seed=0,
            budget=Budget(limit=LIMIT),
        )
        context = Context(spec, torch.device("cpu"), Wire(theirs), tmp_path, checkpoint_seconds=1e9)
        images = np.random.default_rng(0).integers(0, 256, (20_050, 3, 32, 32), dtype=np.uint8)
        split = Split(
            labeled=np.arange(250),
            labels=np.arange(250) % 10,
            unlabeled=np.arange(250, 19_750),
            validation=np.arange(19_750, 20_000),
            test=np.arange(20_000, 20_050),
        )
        plan = {item.name: getattr(split, item.name) for item in dataclasses.fields(Split)}
        meter = Meter(spec.budget, "timed")
        view = View(method, Task(), {"images": images}, plan, meter, context, ("strong-augmentation",))
        method.setup(view.new_model(), view)
        return view

    yield make
    ours.close()
    theirs.close()


def bare_steps(view: View, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ratio: int, steps: range) -> None:
    """The arithmetic of FixMatch's step alone: batches, views, one forward, loss, backward, optimiser."""
    task, size = view.task, view.recipe.batch_size
    draw = torch.Generator().manual_seed(0)
    for _ in steps:
        x = torch.randint(len(view.labeled), (size,), generator=draw)
        u = torch.randint(len(view.unlabeled), (size * ratio,), generator=draw)
        unlabeled = view.unlabeled[u]
        batch = [task.weak(view.labeled[x], draw), task.weak(unlabeled, draw), task.strong(unlabeled, draw)]
        of_labeled, of_weak, of_strong = model(torch.cat(batch)).split([size, size * ratio, size * ratio])
        confidence, target = of_weak.detach().softmax(dim=1).max(dim=1)
        losses = F.cross_entropy(of_strong, target, reduction="none") * (confidence >= 0.95)
        loss = F.cross_entropy(of_labeled, view.labels[x]) + losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_a_step_beside_its_arithmetic(benchmark: BenchmarkFixture, make_view: Callable[..., View], name: str) -> None:
    """`ratio` is the median over pairs; the target is 1.03. The averaged weights count as bookkeeping."""
    entry = registry.get("method", name)
    method = entry.load()(**entry.params())
    view = make_view(method)
    model = view.task.model().train()
    recipe = view.recipe
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, 0.9, weight_decay=5e-4, nesterov=True)
    passes = 3 * recipe.batch_size * (1 + 2 * method.ratio)
    pairs: list[tuple[float, float]] = []

    def run(first: bool) -> float:
        start = time.process_time()
        if first:
            view.train(method, until=view.progress + (STEPS - 0.5) * passes / LIMIT)
        else:
            bare_steps(view, model, optimizer, method.ratio, range(STEPS))
        return time.process_time() - start

    def pair() -> None:
        if len(pairs) % 2:
            pairs.append((run(True), run(False)))
        else:
            alone = run(False)
            pairs.append((run(True), alone))

    pair()
    pairs.clear()
    counted = view.meter.used
    benchmark.pedantic(pair, rounds=PAIRS)
    assert view.meter.used - counted == PAIRS * STEPS * passes
    benchmark.extra_info["ratio"] = ratio = statistics.median(harness / alone for harness, alone in pairs)
    harness, alone = (statistics.median(column) / STEPS for column in zip(*pairs, strict=True))
    print(f"\n{name}: {1e3 * harness:.0f} ms a step in the harness, {1e3 * alone:.0f} ms alone, ratio {ratio:.3f}")


def bookkeeping(method: Any, view: View) -> Callable[[], None]:
    """What a step of `method` does beside FixMatch's arithmetic, on a batch of its size; for `fixmatch` nothing."""
    draw, n = torch.Generator().manual_seed(0), view.recipe.batch_size * method.ratio
    q = (3 * torch.randn(n, view.n_classes, generator=draw)).softmax(dim=1)
    logits = torch.randn(n, view.n_classes, generator=draw, requires_grad=True)
    confidence, labels = q.max(dim=1)
    index = torch.randperm(len(view.unlabeled), generator=draw)[:n]

    def flexmatch() -> None:
        method.thresholds()[labels]
        method.keep(index, labels, confidence)

    def freematch() -> None:
        method.follow(q, confidence, labels)
        mask = confidence >= method.thresholds()[labels]
        method.fairness_loss(logits, mask).backward()

    def softmatch() -> None:
        method.weights(q)

    own = {"fixmatch": lambda: None, "flexmatch": flexmatch, "freematch": freematch, "softmatch": softmatch}
    return own[type(method).__selfbench__["name"]]


@pytest.mark.parametrize("name", METHODS)
def test_bookkeeping_beside_a_step(benchmark: BenchmarkFixture, make_view: Callable[..., View], name: str) -> None:
    """`share` of a step's arithmetic that averaging the weights and the method's own accounts take; the target is 0.03.

    Each alone, over and over: what a step of a quarter of a second varies by is more than what is measured here.
    """
    entry = registry.get("method", name)
    method = entry.load()(**entry.params())
    view = make_view(method)
    model = view.task.model().train()
    average = _Average(copy.deepcopy(model).requires_grad_(False), model)
    optimizer = torch.optim.SGD(model.parameters(), view.recipe.lr)
    own, times = bookkeeping(method, view), {"step": [], "bookkeeping": []}

    def once() -> None:
        start = time.process_time()
        bare_steps(view, model, optimizer, method.ratio, range(1))
        middle = time.process_time()
        for _ in range(20):
            own()
            average.follow(0.999)
        times["step"].append(middle - start)
        times["bookkeeping"].append((time.process_time() - middle) / 20)

    once()
    benchmark.pedantic(once, rounds=PAIRS)
    step, beside = (statistics.median(column) for column in times.values())
    benchmark.extra_info["share"] = beside / step
    print(f"\n{name}: {1e3 * beside:.2f} ms of bookkeeping beside {1e3 * step:.0f} ms, share {beside / step:.4f}")


def test_strong_views_beside_those_of_torchvision(benchmark: BenchmarkFixture) -> None:
    """224 images at a time; torchvision's on single pictures of Pillow. `ratio` is theirs over ours."""
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (224, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).contiguous()
    single = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandAugment(num_ops=2),
            transforms.ToTensor(),
            transforms.RandomErasing(p=1.0),
        ]
    )
    generator = torch.Generator().manual_seed(0)
    pairs: list[tuple[float, float]] = []

    def theirs() -> Tensor:
        return torch.stack([single(Image.fromarray(picture)) for picture in pixels])

    def pair() -> None:
        start = time.process_time()
        strong_view(images, generator)
        middle = time.process_time()
        theirs()
        pairs.append((middle - start, time.process_time() - middle))

    pair()
    pairs.clear()
    benchmark.pedantic(pair, rounds=PAIRS)
    benchmark.extra_info["ratio"] = ratio = statistics.median(other / own for own, other in pairs)
    own, other = (statistics.median(column) / len(pixels) for column in zip(*pairs, strict=True))
    print(f"\nstrong view: {1e6 * own:.0f} us an image, torchvision's {1e6 * other:.0f} us, ratio {ratio:.1f}")
