"""The loop of the protocol `stream`: runs in the method's process and sends sealed predictions to the scorer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint
from ..bundle import Array
from ..errors import BudgetExhausted, MethodError
from ..meter import Meter
from ..seeds import derive
from .context import Context, as_logits, autocast
from .frozen_passes import FrozenCache
from .stream import Source, SourceImages, StreamMethod, StreamTask

_FLUSH = 16
"""On a GPU, sealed logits stay on the device for so many batches, so that no step waits for the host."""


def run_stream(
    method: StreamMethod,
    task: StreamTask,
    public: Mapping[str, Array],
    weights: Mapping[str, Tensor],
    plan: Mapping[str, Array],
    meter: Meter,
    context: Context,
    needs: Collection[str] = (),
    frozen: Mapping[str, str] | None = None,
) -> None:
    """Show every batch once, in order; the logits of batch t are sealed before batch t + 1 is read.

    `plan` is what `StreamScorer.plan` says of the stream, `needs` what the method has declared, `frozen` where frozen
    passes lie.
    """
    indices, cuts = plan["indices"], plan["cuts"]
    device = context.device
    model = task.model()
    model.load_state_dict(dict(weights))
    model.to(device).eval()
    meter.attach(model)
    torch.manual_seed(derive(context.spec.seed, "method"))
    generator = torch.Generator(device).manual_seed(derive(context.spec.seed, "method", "generator"))
    cache = FrozenCache(frozen or {}, plan, meter, device)
    source = make_source(task, public, model, generator, needs)
    source.cache = cache
    with meter.running():
        try:
            method.setup(model, source)
        except BudgetExhausted:
            raise MethodError(f"method '{meter.owner}' used up its budget before the stream began") from None
    meter.settle()
    resets = set(plan["resets"].tolist())
    fresh = copy.deepcopy(checkpoint.capture(method)) if resets else None
    start = 0
    state = context.load_checkpoint()
    if state is not None:
        checkpoint.restore(method, state["method"])
        meter.restore(state["meter"])
        start = int(state["batch"])
        meter.ended = bool(state["ended"])
    sealer = _Sealer(context, task.n_classes, device)
    predict: Callable[[Tensor], Tensor] = method.predict
    precision = autocast(context) if context.spec.precision == "bf16" else None
    total = len(cuts) - 1
    for batch in range(start, total):
        images = task.images(public, indices[cuts[batch] : cuts[batch + 1]]).to(device)
        if fresh is not None and batch in resets:
            checkpoint.reset(method, fresh)
        cache.show(batch, images)
        if not meter.ended:
            # Written out: in a loop over small batches, each block of a `with` costs a hundredth of a step.
            meter.start()
            try:
                if precision is None:
                    logits = predict(images)
                else:
                    with precision:
                        logits = predict(images)
            except BudgetExhausted:
                pass
            finally:
                meter.stop()
                # The next images wait for the device; that wait is this batch's time.
                meter.settle()
        if meter.ended:
            logits = _frozen(method.predictor(), images, meter, context)
        sealer.add(batch, as_logits(logits, len(images), task.n_classes, meter.owner, "batch", batch))
        now = time.monotonic()
        context.progress((batch + 1) / total, now)
        if batch + 1 < total and context.checkpoint_due(now):
            sealer.flush()
            state = {"method": checkpoint.capture(method), "meter": meter.state(), "batch": batch + 1,
                     "ended": meter.ended}  # fmt: skip
            context.save_checkpoint(state, step=batch + 1)
    after = plan["after_cuts"]
    for number in range(len(after) - 1):
        images = task.images(public, plan["after"][after[number] : after[number + 1]]).to(device)
        logits = _frozen(method.predictor(), images, meter, context)
        sealer.add(
            total + number, as_logits(logits, len(images), task.n_classes, meter.owner, "images after the stream")
        )
    sealer.flush()


def make_source(
    task: StreamTask,
    public: Mapping[str, Array],
    model: nn.Module,
    generator: torch.Generator,
    needs: Collection[str],
) -> Source:
    """What `needs` grants, and nothing else."""
    device = generator.device
    source = Source(task.n_classes, device, generator)
    if "source-unlabeled" in needs or "source-data" in needs:
        source.images = SourceImages(task, public, device)
    if "source-data" in needs:
        source.labels = torch.from_numpy(np.array(public["source_labels"], np.int64)).to(device)
    if "source-posterior" in needs:
        source.posterior = (
            split_parameters(public["posterior_mean"], model, device),
            split_parameters(public["posterior_variance"], model, device),
        )
    return source


def split_parameters(flat: Array, model: nn.Module, device: torch.device) -> list[Tensor]:
    """A vector over all parameters of `model`, cut into their shapes."""
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    parts = torch.split(torch.from_numpy(np.array(flat)).to(device), sizes)
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def _frozen(model: nn.Module, images: Tensor, meter: Meter, context: Context) -> Tensor:
    """Predict with what stands when the budget is used up."""
    with meter.paused(), torch.no_grad(), autocast(context):
        return model(images)  # type: ignore[no-any-return]


class _Sealer:
    """Sends logits to the scorer: at once on the CPU, in groups on a GPU."""

    def __init__(self, context: Context, n_classes: int, device: torch.device) -> None:
        self._context = context
        self._capacity = 1 if device.type == "cpu" else _FLUSH
        self._waiting: list[tuple[int, Any]] = []

    def add(self, batch: int, logits: Tensor) -> None:
        if self._capacity == 1:
            self._context.wire.seal(batch, logits.numpy())
            return
        self._waiting.append((batch, logits.clone()))
        if len(self._waiting) >= self._capacity:
            self.flush()

    def flush(self) -> None:
        for batch, logits in self._waiting:
            self._context.wire.seal(batch, logits.cpu().numpy())
        self._waiting.clear()
