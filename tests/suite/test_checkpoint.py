"""What a checkpoint keeps comes back bit by bit, and a run that was killed and resumed equals one that was not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from selfbench.suite import checkpoint
from selfbench.suite.check import KillOnce
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.runner import run
from selfbench.suite.errors import MethodError
from selfbench.suite.protocols.context import Context
from selfbench.suite.record import Record
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import expand
from selfbench.suite.wire import Wire

CPU = torch.device("cpu")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@dataclass
class Method:
    """Everything that a method may hold, freshly set up."""

    lr: float = 0.1
    kept: Any = field(default=None)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.generator = torch.Generator().manual_seed(7)
        self.anchor = torch.zeros(2)
        self.history: list[Any] = []
        self.table: dict[Any, Any] = {"teacher": network(), 3: torch.zeros(2)}
        self.pair = (torch.zeros(1), 0)
        self.distance = partial(torch.dist, p=1)
        self.device = CPU
        self.step, self.best, self.name, self.flag, self.blob = 0, 0.5, "start", False, b"\0\1"

    def train_step(self) -> float:
        """One step that depends on all of the state."""
        x = torch.randn(6, 3, generator=self.generator) + torch.rand(1)
        loss = self.model(x).square().mean() + self.table[3].sum() + self.anchor.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.anchor += loss.detach()
        self.history.append((loss.item(), self.model[0].weight.detach().clone()))
        self.table[3] = self.table[3] + 0.1
        self.table[f"new {self.step}"] = self.step
        self.table["teacher"].load_state_dict(self.model.state_dict())
        self.pair = (self.pair[0] + 1, self.pair[1] + 1)
        self.step, self.name, self.flag = self.step + 1, self.name + "x", True
        return loss.item()


def saved(method: Any, file: Path) -> dict[str, Any]:
    """The state after a trip through the disk."""
    checkpoint.save(file, checkpoint.capture(method), CPU)
    state = checkpoint.load(file, CPU)
    assert state is not None
    return state


def test_a_restored_method_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = Method()
    losses = [whole.train_step() for _ in range(6)]
    first = Method()
    assert [first.train_step() for _ in range(3)] == losses[:3]
    checkpoint.save(tmp_path / "c.pt", checkpoint.capture(first), CPU)
    [first.train_step() for _ in range(2)]  # What happens after the checkpoint is lost.

    second = Method()
    torch.manual_seed(99)
    state = checkpoint.load(tmp_path / "c.pt", CPU)
    assert state is not None
    checkpoint.restore(second, state)
    assert [second.train_step() for _ in range(3)] == losses[3:]
    assert second.step == whole.step == 6
    assert (second.name, second.flag, second.blob) == (whole.name, True, b"\0\1")
    assert [loss for loss, _ in second.history] == losses
    assert all(isinstance(item, tuple) for item in second.history)
    assert torch.equal(second.history[1][1], whole.history[1][1])
    assert (
        list(second.table) == list(whole.table) == ["teacher", 3, "new 0", "new 1", "new 2", "new 3", "new 4", "new 5"]
    )
    assert torch.equal(second.pair[0], whole.pair[0])
    assert second.pair[1] == 6


def test_what_can_load_a_state_keeps_its_identity(tmp_path: Path) -> None:
    """The optimiser must go on training the parameters of this very model."""
    old = Method()
    old.train_step()
    state = saved(old, tmp_path / "c.pt")
    new = Method()
    model, optimizer, generator, anchor = new.model, new.optimizer, new.generator, new.anchor
    checkpoint.restore(new, state)
    assert (new.model is model, new.optimizer is optimizer, new.generator is generator, new.anchor is anchor) == (
        True,
    ) * 4
    assert new.optimizer.param_groups[0]["params"][0] is new.model[0].weight
    before = new.model[0].weight.clone()
    new.train_step()
    assert not torch.equal(before, new.model[0].weight)


def test_the_mode_of_every_module_comes_back(tmp_path: Path) -> None:
    old = Method()
    old.model.eval()
    old.model[1].train()
    new = Method()
    checkpoint.restore(new, saved(old, tmp_path / "c.pt"))
    assert [module.training for module in new.model.modules()] == [False, False, True, False]


def test_what_is_set_up_anew_is_kept(tmp_path: Path) -> None:
    new = Method()
    distance = new.distance
    checkpoint.restore(new, saved(Method(), tmp_path / "c.pt"))
    assert new.distance is distance
    assert new.device is CPU


def test_a_tensor_that_has_grown_is_replaced(tmp_path: Path) -> None:
    old, new = Method(), Method()
    old.anchor = torch.arange(5.0)
    checkpoint.restore(new, saved(old, tmp_path / "c.pt"))
    assert torch.equal(new.anchor, torch.arange(5.0))


def test_skipped_attributes_are_left_out() -> None:
    method = Method()
    assert "anchor" in checkpoint.capture(method)
    assert "anchor" not in checkpoint.capture(method, skip=("anchor",))


@pytest.mark.parametrize(
    "value",
    [(item for item in range(3)), {1, 2}, np.zeros(3), np.random.default_rng(0), object(), [[object()]], {"a": {1}}],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_kept_is_named(value: Any) -> None:
    with pytest.raises(MethodError, match=r"Method\.kept holds a \w+, which a checkpoint cannot keep\. Use tensors"):
        checkpoint.capture(Method(kept=value))


@pytest.mark.parametrize("inside", [lambda module: module, lambda module: [module], lambda module: {"a": module}])
def test_a_module_made_after_setup_is_explained(tmp_path: Path, inside: Callable[[Any], Any]) -> None:
    old = Method(kept=inside(network()))
    state = saved(old, tmp_path / "c.pt")
    with pytest.raises(MethodError, match=r"Method\.kept is a module or an optimiser made after `setup`"):
        checkpoint.restore(Method(), state)


def test_the_global_random_state_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {}, CPU)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert checkpoint.load(tmp_path / "c.pt", CPU) == {}
    assert torch.equal(torch.rand(3), expected)


def test_an_unreadable_checkpoint_is_none_at_all(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    assert checkpoint.load(file, CPU) is None
    checkpoint.save(file, {"a": torch.arange(1000)}, CPU)
    raw = file.read_bytes()
    for size in (0, 10, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:size])
        assert checkpoint.load(file, CPU) is None


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    """Nothing unpickles what others wrote."""

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state": Evil(), "random": {}}, tmp_path / "c.pt")
    assert checkpoint.load(tmp_path / "c.pt", CPU) is None
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of the folder")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        scorer = threading.Thread(target=lambda: Wire(ours).receive() and Wire(ours).send("saved"))
        scorer.start()
        context = Context(None, CPU, Wire(theirs), tmp_path / "file" / "work", checkpoint_seconds=0.0)  # type: ignore[arg-type]
        assert context.checkpoint_due()
        context.save_checkpoint({"a": 1}, step=1)
        scorer.join()
    assert context.load_checkpoint() is None
    assert context.resumed == 0


RESUMED = [
    ("toy-stream", "norm", 10000),
    ("toy-stream", "tent", 10000),
    ("toy-adaptation", "supervised", 3000),
    ("toy-adaptation", "pseudo-label", 6000),
    ("toy-adaptation", "mean-teacher", 8000),
    ("toy-adaptation", "fixmatch", 30000),
]
"""The limits make few dozens of batches or steps, since each is followed by a checkpoint."""


@pytest.mark.parametrize(("task", "method", "limit"), RESUMED)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    campaign, executor, tmp_path: Path, task: str, method: str, limit: float
) -> None:
    """The worker is killed from outside at a checkpoint, and the engine starts it again."""
    [whole] = campaign(task, method, budget={"limit": limit}).finished
    assert whole.provenance.resumed == 0
    resumed = _killed(executor, tmp_path, expand(tasks=[task], methods=[method], seeds=[0], budget={"limit": limit}))
    assert resumed.provenance.attempt > 1
    assert resumed.results() == whole.results()


def _killed(executor: LocalExecutor, folder: Path, specs: list[RunSpec]) -> Record:
    """The record of a run that was resumed; a toy may end before it can be killed, and is then run again."""
    for number in range(5):
        store = Store(folder / f"killed-{number}")
        [record] = run(specs, store, KillOnce(executor, store), _Silent(), checkpoint_seconds=0.0).finished
        if record.provenance.resumed:
            return record
    raise AssertionError(f"{specs[0].label} was never resumed")


class _Silent:
    def started(self, *_: Any) -> None: ...
    def tick(self, *_: Any) -> None: ...
    def finished(self, *_: Any) -> None: ...


def test_a_method_with_state_that_cannot_be_kept_fails_with_a_word(campaign) -> None:
    """It runs as long as no checkpoint is due, and says what to change when one is."""
    [fine] = campaign("toy-stream", "bad-state").finished
    assert fine.status == "ok"
    [record] = campaign("toy-stream", "bad-state", folder="other", checkpoint_seconds=0.0).finished
    assert record.status == "failed"
    assert "BadState.thing holds a generator, which a checkpoint cannot keep" in record.reason
