"""Every registered method that fits runs on every miniature: a step or more, then finite predictions for all sets."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.meter import Meter
from selfbench.suite.needs import missing_needs
from selfbench.suite.protocols.adaptation import EVALUATED, Split
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.context import Context
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.suites import misfit
from selfbench.suite.wire import Wire
from selfbench.tasks.wilds.task import WildsTask

NAMES = [
    "camelyon17", "iwildcam", "fmow", "rxrx1", "civilcomments", "amazon", "poverty", "globalwheat", "py150",
    "ogb-molpcba", "ogb-molpcba-unlabeled",
]  # fmt: skip
LIMIT = 400.0
"""Passes; the hungriest step of four labelled examples takes half of it."""


def ours(entry: registry.Entry) -> bool:
    return registry.PACKAGE in entry.file.parents


def pairs() -> list[Any]:
    tasks = [registry.get("task", f"wilds-{name}") for name in NAMES]
    methods = [method for method in registry.entries("method").values() if ours(method)]
    return [
        pytest.param(method, task.name.removeprefix("wilds-"), id=f"{method.name} on {task.name}")
        for task in tasks
        for method in methods
        if not misfit(method, task)
    ]


@pytest.fixture(scope="module")
def small(wilds_data: Path, bundles: Callable[[str], BundleFolder], miniature: Callable[[str], WildsTask]) -> Any:
    """small(name): a miniature with a few of its test examples, and its plan, made once."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            task, bundle = miniature(name), bundles(name)
            type(task).recipe = dataclasses.replace(task.recipe, points=1)
            split = task.split(bundle, 0)
            plan = {item.name: getattr(split, item.name) for item in dataclasses.fields(Split)}
            plan |= {part: plan[part][:6] for part in EVALUATED}
            made[name] = task, bundle.public(), plan
        return made[name]

    return get


@pytest.mark.parametrize(("method", "name"), pairs())
def test_a_method_runs(
    at_home: Path, small: Any, tmp_path: Path, heard: Callable[..., list[float]], method: registry.Entry, name: str
) -> None:
    task, public, plan = small(name)
    spec = RunSpec(
        task=TaskRef(name="tiny", version="1"),
        method=MethodRef(name="tested", version="1"),
        seed=0,
        budget=Budget(limit=LIMIT),
    )
    ours, theirs = socket.socketpair()
    points: list[dict[str, Any]] = []

    def listen() -> None:
        wire = Wire(ours)
        while (message := wire.receive()) is not None:
            if message.kind == "point":
                points.append({part: np.array(array) for part, array in message.arrays.items()})
            elif message.kind == "validate":
                wire.send("score", value=0.5)

    listener = threading.Thread(target=listen)
    listener.start()
    meter = Meter(spec.budget, method.name)
    try:
        with torch.random.fork_rng(devices=[]):
            context = Context(spec, torch.device("cpu"), Wire(theirs), tmp_path, checkpoint_seconds=1e9)
            learner, needs = method.load()(**method.params()), method.options["needs"]
            losses = heard(learner)
            run_adaptation(learner, task, public, plan, meter, context, needs)
    finally:
        theirs.close()
        listener.join()
        ours.close()
    assert meter.counts.backward > 0
    assert np.isfinite(losses).all()
    for part in EVALUATED:
        if len(plan[part]):
            assert len(points[-1][part]) == len(plan[part])
            assert np.isfinite(points[-1][part]).all()


@pytest.mark.parametrize("name", NAMES)
def test_real_inputs_are_granted_where_inputs_are_real(at_home: Path, small: Any, name: str) -> None:
    """So that methods that add to inputs or mix them are never planned for token ids or graphs."""
    task, public, plan = small(name)
    lacking = missing_needs(("real-inputs",), registry.get("task", f"wilds-{name}").options["grants"])
    assert task.inputs(public, plan["labeled"][:1]).is_floating_point() == (not lacking)
