"""The meter: the clock of one run. Counts work by hooks on the models the harness hands out.

A forward pass of one example through a model counts 1, a backward pass 2. A direct child of the model that is called
by itself (a backbone, a head) counts by its share of the model's parameters. Copies of a model carry its hooks, so a
deep-copied or pickled teacher counts too. What is refused would exceed the limit: used work never does.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from .errors import BudgetExhausted, MethodError
from .spec import Budget

_METERS: weakref.WeakValueDictionary[int, Meter] = weakref.WeakValueDictionary()


@dataclass
class Counts:
    """Counted work; `seconds` is the time in `Meter.running()`. Tokens are also counted by what was done with them."""

    forward: float = 0.0
    backward: float = 0.0
    tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    labels: int = 0
    validation_calls: int = 0
    seconds: float = 0.0

    @property
    def passes(self) -> float:
        return self.forward + 2.0 * self.backward


class Meter:
    """Counts the work of `owner` (the method's name) and raises `BudgetExhausted` at the limit of `budget`.

    Going on after that is a `MethodError` with the method's name. Inside `paused()` nothing is counted. A run of
    several trainings gives each its part of the budget (`allot`).
    """

    def __init__(self, budget: Budget, owner: str, device: torch.device | None = None) -> None:
        self.budget = budget
        self.owner = owner
        self.counts = Counts()
        self.ended = False
        self._from, self._limit = 0.0, budget.limit
        self._device = device or torch.device("cpu")
        self._pauses = 0
        self._depth = 0
        self._set_aside: list[list[tuple[dict[int, Any], int, Any]]] = []
        self._started: float | None = None
        self._unsettled = False
        _METERS[id(self)] = self

    @property
    def used(self) -> float:
        """Used work in the primary currency."""
        if self.budget.currency == "passes":
            return self.counts.passes
        if self.budget.currency == "tokens":
            return float(self.counts.tokens)
        return self.seconds

    @property
    def progress(self) -> float:
        """Used share of the budget, or of the part allotted last, in [0, 1]."""
        return min(1.0, (self.used - self._from) / self._limit)

    @property
    def seconds(self) -> float:
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        return self.counts.seconds + running

    def allot(self, limit: float, since: float | None = None) -> float:
        """From now on `limit` of the currency is all there is, counted from the used work `since` (now); returns it.

        The parts that a run allots must not add up to more than its budget.
        """
        self._from, self._limit, self.ended = self.used if since is None else since, limit, False
        return self._from

    def attach(self, model: nn.Module) -> nn.Module:
        """Count the passes of `model`, its direct children and all copies of them; returns `model`."""
        total = sum(parameter.numel() for parameter in model.parameters()) or 1
        children = []
        for name, child in model.named_children():
            share = sum(parameter.numel() for parameter in child.parameters()) / total
            if share:
                children.append((name, _Hook(self, share).register_child(child)))
        _Hook(self, 1.0, tuple(children)).register_root(model)
        return model

    def charge(
        self, forward: float = 0.0, backward: float = 0.0, generated: int = 0, scored: int = 0, trained: int = 0
    ) -> None:
        """Count passes, and tokens by what is done with them; raise before it is done when it would exceed the limit.

        A budget of tokens is one of their sum.
        """
        if self._pauses:
            return
        tokens = generated + scored + trained
        if self.ended:
            raise MethodError(
                f"method '{self.owner}' went on after its budget of {self.budget.limit:g} {self.budget.currency} was "
                "used up. Let BudgetExhausted pass, or stop when view.progress reaches 1."
            )
        counts, limit = self.counts, self._from + self._limit
        if self.budget.currency == "passes":
            over = counts.forward + forward + 2.0 * (counts.backward + backward) > limit
        elif self.budget.currency == "tokens":
            over = counts.tokens + tokens > limit
        else:
            over = self.seconds >= limit
        if over:
            self.ended = True
            raise BudgetExhausted
        counts.forward += forward
        counts.backward += backward
        counts.tokens += tokens
        counts.generated_tokens += generated
        counts.scored_tokens += scored
        counts.trained_tokens += trained

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Off the meter and off the clock: for the harness's own evaluation."""
        was_running = self._started is not None
        if was_running:
            self.stop()
        self.settle()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if was_running:
                self.start()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """On the clock: the method's own work."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        """Start the clock; `running` is the same as a block, this what a loop over small batches calls."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock; nothing happens when it stands. What a GPU has still to do is counted by `settle`."""
        if self._started is not None:
            self.counts.seconds += time.perf_counter() - self._started
            self._started = None
            self._unsettled = self._device.type == "cuda"

    def add_seconds(self, seconds: float) -> None:
        """Count the time of work that was done before, unless the clock stands."""
        if self._started is not None:
            self.counts.seconds += seconds

    def settle(self) -> None:
        """Wait for the device and count the wait: before work that is off the clock, and before the counts are read.

        Not after every step: the host would then launch the next one while the device stands idle.
        """
        if self._unsettled:
            started = time.perf_counter()
            torch.cuda.synchronize(self._device)
            self.counts.seconds += time.perf_counter() - started
            self._unsettled = False

    def state(self) -> dict[str, float]:
        """The counts, for a checkpoint."""
        self.settle()
        return {item.name: getattr(self.counts, item.name) for item in fields(Counts)}

    def restore(self, state: dict[str, Any]) -> None:
        self.counts = Counts(**state)


class _Hook:
    """Counts one module. Copying and pickling keep the meter, so that copies of the module count as well.

    `children` are names of a root's children with the numbers of their hooks. These are taken off while the root runs,
    which is counted there: a module without hooks is called by a shorter way, which in a small model saves a twentieth
    of the time.
    """

    def __init__(self, meter: Meter, share: float, children: tuple[tuple[str, int], ...] | None = None) -> None:
        self.meter = meter
        self.share = share
        self.children = children

    def register_root(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(_Before(self), with_kwargs=True)
        module.register_forward_hook(_After(self), with_kwargs=True, always_call=True)

    def register_child(self, module: nn.Module) -> int:
        return module.register_forward_pre_hook(_ChildAlone(self), with_kwargs=True).id

    def set_aside(self, module: nn.Module) -> None:
        """Take the hooks of the children off, until `put_back`."""
        taken = []
        for name, number in self.children or ():
            child = module._modules.get(name)
            hook = child._forward_pre_hooks.pop(number, None) if child is not None else None
            if hook is not None and child is not None:
                taken.append((child._forward_pre_hooks, number, hook))
        self.meter._set_aside.append(taken)

    def put_back(self) -> None:
        for hooks, number, hook in self.meter._set_aside.pop():
            hooks[number] = hook

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return self

    def __reduce__(self) -> Any:
        return _same_hook, (id(self.meter), self.share, self.children)


def _same_hook(meter: int, share: float, children: tuple[tuple[str, int], ...] | None) -> _Hook:
    return _Hook(_METERS[meter], share, children)


class _Before:
    __slots__ = ("hook",)

    def __init__(self, hook: _Hook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook, meter = self.hook, self.hook.meter
        depth = meter._depth
        meter._depth = depth + 1
        if hook.children is not None:
            hook.set_aside(module)
        if not meter._pauses and (hook.children is not None or depth == 0):
            meter.charge(forward=_batch_size(args, kwargs) * hook.share)


class _ChildAlone:
    """Counts a child that is called by itself; a call inside one of a root, which is counted there, it leaves alone."""

    __slots__ = ("after", "hook", "watched")

    def __init__(self, hook: _Hook) -> None:
        self.hook = hook
        self.after = _AfterAlone(hook)
        self.watched = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.hook.meter._depth:
            return
        if not self.watched:
            self.watched = True
            module.register_forward_hook(self.after, with_kwargs=True, always_call=True)
        self.after.entered = True
        _Before(self.hook)(module, args, kwargs)


class _AfterAlone:
    """Follows `_ChildAlone`, where that has counted."""

    __slots__ = ("after", "entered")

    def __init__(self, hook: _Hook) -> None:
        self.after = _After(hook)
        self.entered = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.entered:
            self.entered = False
            self.after(module, args, kwargs, output)


class _After:
    __slots__ = ("hook",)

    def __init__(self, hook: _Hook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hook, meter = self.hook, self.hook.meter
        meter._depth -= 1
        is_root = hook.children is not None
        if is_root:
            hook.put_back()
        if meter._pauses or not (is_root or meter._depth == 0) or not torch.is_grad_enabled():
            return
        tensors = list(_differentiable(output))
        if not tensors:
            return
        work = _batch_size(args, kwargs) * hook.share

        def count(gradient: Tensor) -> None:
            meter.charge(backward=work)

        if len(tensors) == 1:
            tensors[0].register_hook(count)  # type: ignore[no-untyped-call]
        else:
            register_multi_grad_hook(tensors, count, mode="any")


def _batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for value in args:
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0]
    for value in kwargs.values():
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0]
    return 1


def _differentiable(output: Any) -> Iterator[Tensor]:
    """The tensors of an output through which a gradient can flow."""
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _differentiable(item)
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _differentiable(item)
    elif is_dataclass(output):
        for field in fields(output):
            yield from _differentiable(getattr(output, field.name))


def peak_memory_mb() -> float:
    """The peak resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
