"""Semi-supervised training: what the harness and a method's bookkeeping add to a step, and what strong views cost.

pytest tests/benchmarks/test_bench_adaptation.py -m benchmark_session -s

Random pixels in the shapes of `cifar10-jpeg-250`, one thread, seconds of the processor; both sides by turns.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from selfbench.suite import registry
from selfbench.suite.protocols.adaptation_view import View, _Average
from selfbench.tasks.images.color_augmentations import strong_view

sys.path.append(str(Path(__file__).parent))
match_steps = importlib.import_module("match_steps")

pytestmark = pytest.mark.benchmark_session
PAIRS = 9
PROCESSES, STEPS = 8, 12
METHODS = ("fixmatch", "flexmatch", "freematch", "softmatch")
"""Methods whose step is FixMatch's arithmetic; what else they do is bookkeeping."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_view(tmp_path: Path) -> Iterator[Callable[[Any], View]]:
    """make_view(method): the real view of a run in whose pool lie 19,500 images, the method set up in it."""
    with contextlib.ExitStack() as stack:
        yield lambda method: stack.enter_context(match_steps.open_view(method, tmp_path))


@pytest.mark.parametrize("name", [*METHODS, "adamatch"])
def test_a_step_beside_its_arithmetic(benchmark: BenchmarkFixture, name: str) -> None:
    """`ratio` is the median over pairs of the medians of their steps; the target is 1.03. Averaged weights, meter and
    the method's own accounts are on the harness's side.

    Each side of each pair is a fresh process, whose first steps are not timed, and each side begins every other pair.
    """
    pairs: list[tuple[float, float]] = []

    def side(which: str) -> float:
        called = [sys.executable, str(Path(match_steps.__file__)), which, name, str(STEPS)]
        return statistics.median(json.loads(subprocess.run(called, check=True, capture_output=True).stdout))

    def pair() -> None:
        order = ("harness", "alone") if len(pairs) % 2 else ("alone", "harness")
        found = {which: side(which) for which in order}
        pairs.append((found["harness"], found["alone"]))

    benchmark.pedantic(pair, rounds=PROCESSES)
    ratios = sorted(harness / alone for harness, alone in pairs)
    benchmark.extra_info["ratio"] = ratio = statistics.median(ratios)
    harness, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"\n{name}: {1e3 * harness:.0f} ms a step in the harness, {1e3 * alone:.0f} ms alone, ratio {ratio:.3f}")
    print("pairs: " + ", ".join(f"{value:.3f}" for value in ratios))


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
    step = match_steps.alone(view, name, method.ratio)
    own, times = bookkeeping(method, view), {"step": [], "bookkeeping": []}

    def once() -> None:
        start = time.process_time()
        step()
        middle = time.process_time()
        for _ in range(20):
            own()
            average.follow(0.999)
        times["step"].append(middle - start)
        times["bookkeeping"].append((time.process_time() - middle) / 20)

    once()
    benchmark.pedantic(once, rounds=PAIRS)
    whole, beside = (statistics.median(column) for column in times.values())
    benchmark.extra_info["share"] = beside / whole
    print(f"\n{name}: {1e3 * beside:.2f} ms of bookkeeping beside {1e3 * whole:.0f} ms, share {beside / whole:.4f}")


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
