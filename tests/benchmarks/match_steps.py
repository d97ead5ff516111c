"""Steps of semi-supervised training in a process of their own. Prints the processor's seconds of each.

python match_steps.py harness|alone METHOD STEPS

Random pixels in the shapes of `cifar10-jpeg-250`, one thread. `harness`: the real training loop, with meter, batches
drawn by seed and step, averaged weights, and all that the method does. `alone`: a loop that draws as many examples,
makes the same views of them, and does what the method's loss needs in passes of the same network: nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.suite import registry
from selfbench.suite.meter import Meter
from selfbench.suite.protocols.adaptation import Split
from selfbench.suite.protocols.adaptation_view import View
from selfbench.suite.protocols.context import Context
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire
from selfbench.tasks.images.cifar10_jpeg import Cifar10Jpeg250

LIMIT = 1e9
WARM = 2
"""Steps before the first that is timed."""


class Task(Cifar10Jpeg250):
    """No evaluation, averaged weights as in the task."""

    recipe = dataclasses.replace(Cifar10Jpeg250.recipe, points=1)


@contextlib.contextmanager
def open_view(method: Any, folder: Path) -> Iterator[View]:
    """The real view of a run in whose pool lie 19,500 images, the method set up in it."""
    ours, theirs = socket.socketpair()
    try:
        spec = RunSpec(
            task=TaskRef(name="timed", version="1"),
            method=MethodRef(name="timed", version="1"),
            seed=0,
            budget=Budget(limit=LIMIT),
        )
        context = Context(spec, torch.device("cpu"), Wire(theirs), folder, checkpoint_seconds=1e9)
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
        yield view
    finally:
        ours.close()
        theirs.close()


def passes_a_step(name: str, ratio: int, size: int) -> int:
    """Counted passes of a step: `adamatch` views labelled examples twice, and passes them twice."""
    return 3 * size * ((4 if name == "adamatch" else 1) + 2 * ratio)


def alone(view: View, name: str, ratio: int) -> Callable[[], None]:
    """One step of the arithmetic of `name`: examples, views, passes, loss, backward, optimiser."""
    task, recipe, size = view.task, view.recipe, view.recipe.batch_size
    model = task.model().train()
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, 0.9, weight_decay=5e-4, nesterov=True)
    draw = torch.Generator().manual_seed(0)
    loss_of = adamatch if name == "adamatch" else fixmatch

    def step() -> None:
        x = torch.randint(len(view.labeled), (size,), generator=draw)
        u = torch.randint(len(view.unlabeled), (size * ratio,), generator=draw)
        labeled, unlabeled = view.labeled[x], view.unlabeled[u]
        of_labeled = [task.weak(labeled, draw)]
        if name == "adamatch":
            of_labeled.append(task.strong(labeled, draw))
        views = [task.weak(unlabeled, draw), task.strong(unlabeled, draw)]
        loss = loss_of(model, torch.cat(of_labeled), torch.cat(views), view.labels[x])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def unlabeled_loss(weak: Tensor, strong: Tensor) -> Tensor:
    confidence, target = weak.detach().softmax(dim=1).max(dim=1)
    return (F.cross_entropy(strong, target, reduction="none") * (confidence >= 0.95)).mean()


def fixmatch(model: nn.Module, labeled: Tensor, unlabeled: Tensor, y: Tensor) -> Tensor:
    half = len(unlabeled) // 2
    own, weak, strong = model(torch.cat([labeled, unlabeled])).split([len(labeled), half, half])
    return F.cross_entropy(own, y) + unlabeled_loss(weak, strong)


def adamatch(model: nn.Module, labeled: Tensor, unlabeled: Tensor, y: Tensor) -> Tensor:
    half = len(unlabeled) // 2
    first = model(labeled)
    own, weak, strong = model(torch.cat([labeled, unlabeled])).split([len(labeled), half, half])
    return F.cross_entropy(0.5 * (first + own), y.repeat(2)) + unlabeled_loss(weak, strong)


def seconds(side: str, name: str, steps: int) -> list[float]:
    """The processor's seconds of each of `steps` steps."""
    entry = registry.get("method", name)
    method = entry.load()(**entry.params())
    with tempfile.TemporaryDirectory() as folder, open_view(method, Path(folder)) as view:
        size = passes_a_step(name, method.ratio, view.recipe.batch_size)
        step = alone(view, name, method.ratio)
        if side == "harness":
            ends: list[float] = []
            after = method.after_step

            def after_step() -> None:
                after()
                ends.append(time.process_time())

            method.after_step = after_step
            view.train(method, until=(WARM + steps + 0.5) * size / LIMIT)
            assert view.meter.used == len(ends) * size
            return np.diff(ends[WARM - 1 : WARM + steps]).tolist()
        for _ in range(WARM):
            step()
        ends = [time.process_time()]
        for _ in range(steps):
            step()
            ends.append(time.process_time())
        return np.diff(ends).tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(seconds(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
