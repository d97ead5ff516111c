"""The worker: one run, from a job to a record file.

Two processes. The worker forks the method's process first, while neither has seen a label, then loads the labels and
becomes the scorer. The method's process maps public arrays only, runs the protocol's loop, and sends predictions over
a line; it is killed with all it spawned when it ends, hangs, or takes too much memory. The scorer writes the record.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from . import registry
from .bundle import BundleFolder, source_key
from .data_facts import data_facts
from .decoded import decoded_seconds, read_decoded
from .errors import BudgetExhausted, MethodError, RecordError, SelfbenchError
from .files import locked
from .generation import engines
from .job import BUSY, IO_ERROR, Job
from .meter import Meter, peak_memory_mb
from .outcome import Outcome
from .policy_scorer import PolicyScorer
from .processes import (
    adopt_orphans,
    close_files_except,
    die_with_parent,
    group_memory_mb,
    kill_descendants,
    kill_group,
    limit_memory,
    ran_out_of_memory,
)
from .protocols.active import ActiveTask
from .protocols.active_loop import run_active
from .protocols.adaptation_loop import run_adaptation
from .protocols.context import Context, prepare_torch
from .protocols.first_policy import find_first
from .protocols.policy_loop import run_policy
from .protocols.stream_loop import run_stream
from .record import TOKENS, Cost, Provenance, Record, Status
from .scorer import Scorer, StreamScorer, make_scorer
from .spec import RunSpec
from .store import Store
from .wire import Message, Wire

_LOOK_EVERY = 0.2
"""Seconds between looks at the method's memory."""
_REST = 0.02
"""Seconds the scorer rests when it has taken all that was sealed: a receiver that waits makes sending slow."""
_MORE = "allow more with `--budget memory_mb=N`, or take a smaller model or task"
_MORE_ON_A_GPU = "take a GPU with more memory, fewer runs at once (`-j 1`), or a smaller model or task"
_ENCODERS = frozenset({"fine-tuning", "token-tagging", "question-answering"})
"""Tags of tasks whose runs train an encoder of `transformers` on its own tokens."""
_SMALL = 8192
"""It rests after predictions of so many bytes; many of these fit the line's buffer, larger ones would wait for it."""


def main(job: Job) -> int:
    """Run one job; returns the worker's exit code (0 when a record stands in the store)."""
    spec = job.run_spec
    store = Store(Path(job.results))
    work = store.work(spec)
    try:
        with locked(work / "claim", wait=False) as mine:
            if not mine:
                return BUSY
            if _stands(store, spec, job):
                return 0
            if job.unprepared:
                # What an earlier attempt has left, a checkpoint for one, waits for the next.
                status: Status = "oom" if job.unprepared["status"] == "oom" else "failed"
                store.write(_record(job, spec, _Result(status, job.unprepared["reason"]), None, None, 0.0))
                return 0
            record = _run(job, spec, work)
            store.write(record)
            if record.status == "ok":
                shutil.rmtree(work, ignore_errors=True)
            else:
                # The log stays for its reader; a later attempt starts from the beginning.
                for leftover in (*work.glob("checkpoint*"), *work.glob("scorer*")):
                    leftover.unlink(missing_ok=True)
                shutil.rmtree(work / "rollouts", ignore_errors=True)
    except OSError as error:
        print(f"cannot write under {job.results}: {error}", file=sys.stderr)
        return IO_ERROR
    return 0


def _stands(store: Store, spec: RunSpec, job: Job) -> bool:
    """Whether there is a record that this job is not to replace. What ran is never replaced by what could not begin."""
    if job.replace and not job.unprepared:
        return False
    try:
        record = store.read(spec)
    except RecordError:
        # The engine moves a broken file out of the way first.
        return True
    return record is not None and record.started


class _Tally(Cost):
    """What the method's process counted, as it comes over the line."""

    ended: bool = False
    resumed: int = Field(default=0, ge=0)
    gpu: str | None = None


@dataclass
class _Result:
    """What came over the line: how the run ended, what it counted."""

    status: Status = "ok"
    reason: str = ""
    tally: _Tally = field(default_factory=_Tally)
    outcome: Outcome | None = None


def _run(job: Job, spec: RunSpec, work: Path) -> Record:
    started = time.perf_counter()
    adopt_orphans()
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    method_pid = os.fork()
    if method_pid == 0:
        code = 1
        try:
            ours.close()
            code = _method_process(job, spec, work, theirs, parent)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with contextlib.suppress(OSError):
        # Also set by the child: whoever comes first, a kill of the group finds it.
        os.setpgid(method_pid, method_pid)
    theirs.close()
    result = _Result()
    scorer: Scorer | None = None
    task_entry = registry.get("task", spec.task.name)
    bundle = BundleFolder(Path(job.bundle))
    try:
        scorer = make_scorer(task_entry.load()(), bundle, spec, work, job.permute)
        _listen(Wire(ours), scorer, result, spec, method_pid)
        if result.status == "ok":
            result.outcome = scorer.outcome()
            given = result.outcome.given_labels
            if given not in (None, result.tally.labels):
                raise MethodError(f"{given} labels were given out, the method's process counted {result.tally.labels}")
            if result.outcome.predictions is not None:
                kept = Store(Path(job.results)).predictions(spec)
                kept.parent.mkdir(parents=True, exist_ok=True)
                result.outcome.predictions.replace(kept)
    except (SelfbenchError, ImportError, MemoryError, torch.OutOfMemoryError) as error:
        # A broken contract, or what the scorer's side of the task lacks here.
        result.status, result.reason = _reason(error)
    finally:
        kill_group(method_pid)
        kill_descendants()
        ours.close()
    return _record(job, spec, result, scorer, bundle, time.perf_counter() - started)


def _listen(wire: Wire, scorer: Scorer, result: _Result, spec: RunSpec, method_pid: int) -> None:
    """Serve the method's process until it says it has finished, dies, or breaks a hard limit."""
    deadline = time.monotonic() + spec.budget.wall_seconds
    look = 0.0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send("plan", scorer.plan())
    while True:
        now = time.monotonic()
        if now >= deadline:
            result.status = "timeout"
            result.reason = f"stopped at the hard limit of {spec.budget.wall_seconds:g} seconds of wall time"
            return
        if now >= look:
            look = now + _LOOK_EVERY
            memory = group_memory_mb(method_pid)
            if memory > spec.budget.memory_mb:
                result.status = "oom"
                result.reason = f"took {memory:.0f} MiB of memory; the limit is {spec.budget.memory_mb} MiB; {_MORE}"
                return
        ready, _, _ = select.select([wire.socket], [], [], min(_LOOK_EVERY, deadline - now))
        if not ready:
            continue
        try:
            message = wire.receive(deadline)
            if message is not None:
                if _is_last(message, result):
                    return
                _handle(scorer, message, wire)
                small = message.kind == "seal" and message.arrays["logits"].nbytes <= _SMALL
                if small and not select.select([wire.socket], [], [], 0.0)[0]:
                    time.sleep(_REST)
                continue
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            pass
        result.status, result.reason = "failed", _death(method_pid)
        return


def _handle(scorer: Scorer, message: Message, wire: Wire) -> None:
    """Let the scorer take one message; one that makes no sense is the fault of the method's process."""
    try:
        scorer.handle(message, wire)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        raise MethodError(f"the method's process sent a '{message.kind}' that cannot be scored ({what})") from error


def _is_last(message: Message, result: _Result) -> bool:
    if message.kind not in ("finished", "failed"):
        return False
    counts: Any = message.fields
    if message.kind == "failed":
        status = message.fields.get("status")
        result.status = status if status in ("failed", "oom") else "failed"
        result.reason = str(message.fields.get("reason", ""))[:2000]
        counts = message.fields.get("counts", {})
    try:
        result.tally = _Tally.model_validate(counts)
    except ValidationError:
        raise MethodError("the method's process sent counts that make no sense") from None
    return True


def _death(pid: int) -> str:
    """Why the method's process ended without a word."""
    with contextlib.suppress(ChildProcessError):
        for _ in range(50):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                return f"the method's process was ended by signal {-code}" if code < 0 else (
                    f"the method's process left with exit code {code} before it had finished")  # fmt: skip
            time.sleep(0.02)
    return "the method's process closed its line before it had finished"


def _method_process(job: Job, spec: RunSpec, work: Path, end: socket.socket, parent: int) -> int:
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
        status, reason = _reason(error)
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
        for folder in _source(job).values():
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


def _reason(error: BaseException) -> tuple[Status, str]:
    """Status and reason of an exception in one of the two processes."""
    text = f"{type(error).__name__}: {error}".strip().removeprefix("MethodError: ")
    if ran_out_of_memory(error):
        # The budget's limit is one of the host's memory.
        remedy = _MORE_ON_A_GPU if isinstance(error, torch.OutOfMemoryError) else _MORE
        return "oom", f"{text.removesuffix(':')}; {remedy}"
    if isinstance(error, BudgetExhausted):
        text = "the budget ended outside of training"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, SelfbenchError):
        text += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return "failed", text


def _record(
    job: Job,
    spec: RunSpec,
    result: _Result,
    scorer: Scorer | None,
    bundle: BundleFolder | None,
    seconds: float,
) -> Record:
    """The record of a run; `bundle` is None where it never began, for want of what it needs."""
    tally, outcome = result.tally, result.outcome
    cost = tally.model_dump(include=set(Cost.model_fields))
    cost["labels"] += outcome.extra_labels if outcome else 0
    cost["setup_seconds"] = max(0.0, seconds - tally.seconds)
    facts = bundle.facts if bundle else {}
    source = _source(job)
    prepared = [facts, *(folder.facts for folder in source.values())]
    built = sum(float(each.get("preparation_seconds", 0.0)) for each in prepared)
    cost["preparation_seconds"] = built + decoded_seconds(job.decoded)
    method_entry, task_entry = registry.get("method", spec.method.name), registry.get("task", spec.task.name)
    return Record(
        run_id=spec.run_id,
        spec=spec,
        status=result.status,
        reason=result.reason,
        primary=str(task_entry.options["metric"]),
        metrics=outcome.metrics if outcome else {},
        n=outcome.n if outcome else 0,
        groups=outcome.groups if outcome else {},
        curve=outcome.curve if outcome else [],
        diagnostics=outcome.diagnostics if outcome else {},
        data_facts=data_facts(facts),
        budget_used_up=tally.ended,
        predictions_sha256=outcome.predictions_sha256 if outcome else None,
        cost=Cost.model_validate(cost),
        provenance=Provenance(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            selfbench=metadata.version("selfbench"),
            git_commit=job.code.get("commit"),
            git_dirty=job.code.get("dirty"),
            method_sha256=method_entry.source_sha256,
            task_sha256=source_key(task_entry.file, registry.PACKAGE),
            bundle_sha256=bundle.sha256 if bundle else "",
            source_sha256={part: folder.sha256 for part, folder in source.items()},
            stream_sha256=scorer.stream.sha256 if isinstance(scorer, StreamScorer) else None,
            python=platform.python_version(),
            packages=_packages(
                task_entry.protocol,
                task_entry.options["tags"],
                [*(scorer.packages if isinstance(scorer, PolicyScorer) else ()), *engines(spec.generation)],
            ),
            platform=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            gpu=tally.gpu,
            command=job.command,
            attempt=job.attempt,
            resumed=tally.resumed,
        ),
    )


def _source(job: Job) -> dict[str, BundleFolder]:
    """The parts of the source that lie apart from the task's bundle."""
    return {part: BundleFolder(Path(path)) for part, path in job.source.items()}


def _packages(protocol: str, tags: Sequence[str], more: Sequence[str] = ()) -> dict[str, str]:
    """The versions of the packages that can move results; `more` are what code of models imports, and engines.

    Vectors of a frozen encoder are part of the bundle, whose digest the record holds, whatever has made them.
    """
    names = list(dict.fromkeys(["numpy", "torch", *more]))
    if protocol == "policy" or _ENCODERS & set(tags):
        names.append("transformers")
    if "adapters" in tags:
        names.append("peft")
    if "adapters" in tags or _ENCODERS & set(tags):
        names.append("tokenizers")
    found = {}
    for name in names:
        # Whether a missing one matters, the method's process has said.
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    """The processor and the instructions that torch uses on it; other ones round sums differently."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
