"""For every registered stream method: a kill at any batch changes nothing, and it changes only what it declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from selfbench.suite import checkpoint, registry

from .conftest import RETURNING_PLAN, ImageNet, TinyStream

METHODS = [
    name
    for name, entry in registry.entries("method").items()
    if entry.protocol == "stream" and registry.PACKAGE in entry.file.parents
]
BATCHES = len(RETURNING_PLAN["cuts"]) - 1
SHORT: dict[str, dict[str, Any]] = {
    "adacontrast": {"queue": 32, "warm": 8},
    "cotta": {"views": 3, "p_th": 1.0},
    "deyo": {"margin": 1.0, "plpd": -1.0},
    "eata": {"margin": 1.0, "d_margin": 1.01, "fisher_images": 20, "fisher_batch": 8},
    "eta": {"margin": 1.0, "d_margin": 1.01},
    "fst": {"threshold": 0.0},
    "memo": {"views": 3},
    "note": {"source_steps": 3, "interval": 8, "capacity": 8},
    "petal": {"views": 3, "p_th": 1.0},
    "rdumb": {"margin": 1.0, "d_margin": 1.01, "period": 2},
    "rmt-replay": {"warmup_images": 40, "source_batch": 20},
    "rotta": {"interval": 8, "capacity": 8},
    "sar": {"margin": 1.0},
    "vida": {"views": 3},
    "vida-pretrained": {"pretrain_steps": 3, "views": 3},
}
"""Bounds that let every batch of these few images pass, and little work before the stream."""

AFFINE = {"1.weight", "1.bias", "3.1.weight", "3.1.bias"}
LOWER = {"1.weight", "1.bias"}
STATISTICS = {"1.running_mean", "1.running_var", "3.1.running_mean", "3.1.running_var"}
COUNTERS = {"1.num_batches_tracked", "3.1.num_batches_tracked"}
WEIGHTS = {*AFFINE, "0.weight", "3.0.weight", "6.weight", "6.bias"}
DECLARED: dict[str, set[str]] = {
    "adacontrast": WEIGHTS | STATISTICS | COUNTERS,
    "cmf": AFFINE,
    "cotta": WEIGHTS,
    "deyo": LOWER,
    "eata": AFFINE,
    "eta": AFFINE,
    "fst": WEIGHTS,
    "lame": set(),
    # Its weights go back after each image; the statistics are those of the last one, mixed with the source's.
    "memo": STATISTICS,
    "norm": set(),
    # Before the stream all weights learn on source images, which this run leaves out.
    "note": AFFINE | STATISTICS,
    "petal": WEIGHTS,
    "pseudo-label-stream": AFFINE,
    "rdumb": AFFINE,
    "rmt": WEIGHTS,
    "rmt-replay": WEIGHTS,
    "roid": AFFINE,
    "rotta": AFFINE | STATISTICS,
    "sar": LOWER,
    "source": set(),
    "tent": AFFINE,
    "vida": WEIGHTS,
    "vida-pretrained": WEIGHTS,
    # What it trains are prompts, which are no part of the source model.
    "visual-prompt": set(),
}
"""What of the source model each method changes, by its paper: the parameters and buffers of `ImageNet`."""
LEARNS_NOTHING = ("lame", "norm", "source")
"""Methods of which no batch moves anything."""
WITHOUT_DRAWS = ("eta", "eata", "lame", "norm", "pseudo-label-stream", "sar", "source", "tent")
"""Methods that draw nothing in the stream, so that a new start on the same images predicts the same."""


def make(name: str, **more: Any) -> Any:
    """The method, short, at a rate at which few batches move what it trains."""
    entry = registry.get("method", name)
    rate = {"lr": 0.02} if any(item.name == "lr" for item in entry.hypers) else {}
    return entry.load()(**entry.params({**rate, **SHORT.get(name, {}), **more}))


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_killed_at_any_batch_goes_on_as_if_it_had_not_been(
    stream: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    whole = stream(make(name), plan=RETURNING_PLAN)
    assert len(whole.logits) == BATCHES + 2
    saving = stream(make(name), plan=RETURNING_PLAN, checkpoints=0, keep=tmp_path)
    for stop in range(BATCHES):
        # A kill after a batch leaves what is on disk then, and what the scorer has sealed.
        resumed = stream(make(name), plan=RETURNING_PLAN, folder=tmp_path / str(stop)) if stop else saving
        assert len(resumed.logits) == BATCHES + 2 - stop
        for batch, (mine, theirs) in enumerate(zip(whole.logits[stop:], resumed.logits, strict=True), stop):
            assert np.array_equal(mine, theirs), f"killed after batch {stop}, batch {batch} differs"
        assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


class Kept(TinyStream):
    """Remembers the tensors of the source model that it hands out; their values are those of `ImageNet`."""

    def model(self) -> nn.Module:
        model = super().model()
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return model


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_declare_is_unchanged_at_the_end(stream: Callable[..., Any], name: str) -> None:
    task, before = Kept(), ImageNet().state_dict()
    more = {"source_steps": 0} if name == "note" else {}
    method = stream(make(name, **more), task=task).method
    changed = {key for key, tensor in task.tensors.items() if not torch.equal(tensor, before[key])}
    assert changed == DECLARED[name]
    # Copies too: what predicts in the end, and whatever else has the form of the source model.
    for module in [method.predictor(), *(value for value in vars(method).values() if isinstance(value, nn.Module))]:
        state = module.state_dict()
        if state.keys() == before.keys():
            assert {key for key, tensor in state.items() if not torch.equal(tensor, before[key])} <= DECLARED[name]


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_reset_puts_a_method_back_to_its_start(stream: Callable[..., Any], name: str) -> None:
    logits = stream(make(name), plan=RETURNING_PLAN).logits
    for first, again in ((0, 2), (1, 3)):
        assert np.allclose(logits[first], logits[again], atol=1e-6)
    going_on = stream(make(name), plan=RETURNING_PLAN | {"resets": np.zeros(0, np.int64)}).logits
    learns = bool(DECLARED[name])
    assert np.array_equal(going_on[1], going_on[3]) != learns


def snapshot(value: Any) -> Any:
    """All that may change in `value`: beside what a checkpoint knows, buffers without persistence and attributes of
    modules and of other objects. Random generators are left out.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [snapshot(item) for item in value]
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, torch.optim.Optimizer):
        return snapshot(value.state_dict())
    if isinstance(value, nn.Module):
        own = {key: item for key, item in vars(value).items() if not key.startswith("_")}
        inside = {"parameters": value._parameters, "buffers": value._buffers, "modules": value._modules}
        return snapshot({**own, **inside})
    return None


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two snapshots differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{where}[{number}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
        return [] if torch.equal(one, other) else [where]
    return (
        [] if type(one) is type(other) and not isinstance(one, (dict, list, torch.Tensor)) and one == other else [where]
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_reset_puts_back_all_that_a_method_keeps(
    stream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Weights, teachers, optimisers, memories, queues: all is as `setup` left it, after batches moved it."""
    method, states, found = make(name), {}, []
    capture, reset = checkpoint.capture, checkpoint.reset

    def captured(owner: Any, *rest: Any) -> Any:
        states.setdefault("start", snapshot(vars(owner)))
        return capture(owner, *rest)

    def watched(owner: Any, state: Any) -> None:
        moved = differences(states["start"], snapshot(vars(owner)))
        reset(owner, state)
        found.append((moved, differences(states["start"], snapshot(vars(owner)))))

    monkeypatch.setattr(checkpoint, "capture", captured)
    monkeypatch.setattr(checkpoint, "reset", watched)
    stream(method, plan=RETURNING_PLAN)
    assert len(found) == 2
    for moved, left in found:
        assert bool(moved) != (name in LEARNS_NOTHING), f"what the batches have moved: {moved}"
        assert left == []
