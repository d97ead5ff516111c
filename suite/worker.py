"""The worker: one run, from a job to a record file.

Two processes. The worker forks the method's process first, while neither has seen a label, then loads the labels and
becomes the scorer. The method's process maps public arrays only, runs the protocol's loop, and sends predictions over
a line; it is killed with all it spawned when it ends, hangs, or takes too much memory. The scorer writes the record.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from . import registry
from .bundle import BundleFolder
from .errors import MethodError, RecordError, SelfbenchError
from .files import locked
from .job import BUSY, IO_ERROR, Job
from .processes import adopt_orphans, group_memory_mb, kill_descendants, kill_group
from .record import Record, Status
from .run.method_process import method_process
from .run.report import MORE, Result, Tally, make_record, status_and_reason
from .run.scorer import Scorer, make_scorer
from .spec import RunSpec
from .store import Store
from .wire import Message, Wire

_LOOK_EVERY = 0.2
"""Seconds between looks at the method's memory."""
_REST = 0.02
"""Seconds the scorer rests when it has taken all that was sealed: a receiver that waits makes sending slow."""
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
                store.write(make_record(job, spec, Result(status, job.unprepared["reason"]), None, None, 0.0))
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
            code = method_process(job, spec, work, theirs, parent)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with contextlib.suppress(OSError):
        # Also set by the child: whoever comes first, a kill of the group finds it.
        os.setpgid(method_pid, method_pid)
    theirs.close()
    result = Result()
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
        result.status, result.reason = status_and_reason(error)
    finally:
        kill_group(method_pid)
        kill_descendants()
        ours.close()
    return make_record(job, spec, result, scorer, bundle, time.perf_counter() - started)


def _listen(wire: Wire, scorer: Scorer, result: Result, spec: RunSpec, method_pid: int) -> None:
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
                result.reason = f"took {memory:.0f} MiB of memory; the limit is {spec.budget.memory_mb} MiB; {MORE}"
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


def _is_last(message: Message, result: Result) -> bool:
    if message.kind not in ("finished", "failed"):
        return False
    counts: Any = message.fields
    if message.kind == "failed":
        status = message.fields.get("status")
        result.status = status if status in ("failed", "oom") else "failed"
        result.reason = str(message.fields.get("reason", ""))[:2000]
        counts = message.fields.get("counts", {})
    try:
        result.tally = Tally.model_validate(counts)
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
