"""The fork server: a process that has imported torch once and forks a fresh process for every job.

Speaks JSON lines over an inherited socket:
    in   {"id": 1, "call": "run" | "prepare", "argument": "<file>", "log": "<file>", "gpu": null}
    out  {"id": 1, "pid": 123}    the job has started; its processes form a session of their own
         {"id": 1, "code": 0}     it has ended
When the other end closes, every job is killed and the server leaves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import registry
from ..processes import adopt_orphans, die_with_parent, kill_descendants, kill_group

WARM = (
    "torch",
    "torch.optim",
    "torch._dynamo",
    "safetensors.torch",
    "selfbench.suite.worker",
    "selfbench.suite.prepare",
)


def main(fd: int, modules: Sequence[str] = ()) -> None:
    line = socket.socket(fileno=fd)
    for name in WARM:
        importlib.import_module(name)
    for name in modules:
        # What a task's module lacks here, the preparation of that task says.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for kind in ("method", "task"):
        # Parsed once here, not in every job.
        registry.entries(kind)
    gc.freeze()
    # Python 3.12 warns of any second thread. The one there can be is of pyarrow's allocator, which minds forks.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    adopt_orphans()
    wake_read, wake_write = os.pipe()
    for end in (wake_read, wake_write):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(line, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    jobs: dict[int, int] = {}
    try:
        _send(line, {"ready": True})
        _serve(line, (wake_read, wake_write), selector, jobs)
    except ConnectionError:
        # The engine closed its end with an answer of ours unread, or as one was being sent: it has left.
        pass
    finally:
        for pid in jobs:
            kill_group(pid)
        kill_descendants()


def _serve(line: socket.socket, wake: tuple[int, int], selector: selectors.BaseSelector, jobs: dict[int, int]) -> None:
    """Fork what is asked for and report what ended, until the other end closes."""
    pending = b""
    while True:
        for key, _ in selector.select():
            if key.fileobj is line:
                data = line.recv(1 << 16)
                if not data:
                    return
                *requests, pending = (pending + data).split(b"\n")
                for request in requests:
                    job = json.loads(request)
                    pid = _fork(job, (line.fileno(), *wake))
                    jobs[pid] = job["id"]
                    _send(line, {"id": job["id"], "pid": pid})
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake[0], 4096)
        _reap(line, jobs)


def _reap(line: socket.socket, jobs: dict[int, int]) -> None:
    """Report ended jobs. A child that is no job is an orphan of a killed worker and is killed."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in jobs:
                kill_group(pid)
                _send(line, {"id": jobs.pop(pid), "code": os.waitstatus_to_exitcode(status)})
    _kill_strays(set(jobs))


def _kill_strays(known: set[int]) -> None:
    import psutil

    for child in psutil.Process().children():
        if child.pid not in known:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _fork(job: dict[str, Any], close: tuple[int, ...]) -> int:
    server = os.getpid()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in close:
            os.close(fd)
        os.setsid()
        die_with_parent(server)
        log = Path(job["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        if job.get("gpu") is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(job["gpu"])
        code = _call(job["call"], Path(job["argument"]))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _call(call: str, argument: Path) -> int:
    if call == "run":
        from ..job import Job
        from ..worker import main as run

        return run(Job.read(argument))
    from ..prepare.builder import main as prepare

    return prepare(argument)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
