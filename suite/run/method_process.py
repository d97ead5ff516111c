"""The process that runs the method: no label it may not see ever enters it."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..bundle import BundleFolder
from ..errors import MethodError
from ..job import Job
from ..meter import Meter, peak_memory_mb
from ..prepare.decoded import read_decoded
from ..processes import close_files_except, die_with_parent, limit_memory
from ..protocols.active import ActiveTask
from ..protocols.active_loop import run_active
from ..protocols.adaptation_loop import run_adaptation
from ..protocols.context import Context, prepare_torch
from ..protocols.first_policy import find_first
from ..protocols.policy_loop import run_policy
from ..protocols.stream_loop import run_stream
from ..record import TOKENS
from ..spec import RunSpec
from ..wire import Message, Wire
from .report import source_of, status_and_reason


def method_process(job: Job, spec: RunSpec, work: Path, end: socket.socket, parent: int) -> int:
    """The process that runs the method: no label it may not see ever enters it."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    die_with_parent(parent)
    close_files_except({end.fileno()})
    wire = Wire(end)
    meter: Meter | None = None
    try:
        device = prepare_torch(spec)
        if device.type == "cpu":
            limit_memory(spec.budget.memory_mb)
        message = wire.receive()
        if message is None or message.kind != "plan":
            return 1
        meter = Meter(spec.budget, spec.method.name, device)
        context = Context(spec, device, wire, work, job.checkpoint_seconds)
        _run_protocol(job, spec, message, meter, context)
        wire.send("finished", **_counts(meter, device, context))
        return 0
    except BaseException as error:
        traceback.print_exc()
        status, reason = status_and_reason(error)
        counts = _counts(meter, torch.device(spec.device), None) if meter else {}
        with contextlib.suppress(OSError):
            wire.send("failed", status=status, reason=reason, counts=counts)
        return 1


def _run_protocol(job: Job, spec: RunSpec, plan: Message, meter: Meter, context: Context) -> None:
    method_entry = registry.get("method", spec.method.name)
    task_entry = registry.get("task", spec.task.name)
    method, task = method_entry.load()(**spec.method.params), task_entry.load()()
    bundle, needs = BundleFolder(Path(job.bundle)), method_entry.options["needs"]
    if task_entry.protocol == "stream":
        public = bundle.public()
        for folder in source_of(job).values():
            public |= folder.public()
        run_stream(method, task, public, bundle.model(), plan.arrays, meter, context, needs, job.frozen)
    elif task_entry.protocol == "adaptation":
        loop = run_active if isinstance(task, ActiveTask) else run_adaptation
        loop(method, task, bundle.public() | read_decoded(job.decoded), plan.arrays, meter, context, needs)
    elif task_entry.protocol == "policy":
        first = find_first(job.frozen.get("first"))
        run_policy(method, task, bundle.public(), bundle.model(), plan.arrays, meter, context, first)
    else:
        raise MethodError(f"there is no loop for the protocol '{task_entry.protocol}'")


def _counts(meter: Meter, device: torch.device, context: Context | None) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    counts = meter.state()
    if sum(counts[name] for name in TOKENS) != counts["tokens"]:
        # The run went on from a checkpoint of before they were told apart.
        counts |= dict.fromkeys(TOKENS, 0)
    return {
        **counts,
        "passes": meter.counts.passes,
        "ended": meter.ended,
        "gpu_seconds": meter.counts.seconds if on_gpu else 0.0,
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else 0.0,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "resumed": context.resumed if context else 0,
    }
