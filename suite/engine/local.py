"""The local engine: slots on this machine, served by warmed fork servers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import SelfbenchError
from ..files import write_atomic
from ..job import Job
from ..store import Store
from .executor import Ended

_START_SECONDS = 120.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class LocalExecutor:
    """Runs up to `slots` jobs at once, with `gpus` (device indices) shared out among the slots when given.

    `warm` names modules that the server imports once, beside torch: those of the tasks about to run. One fork server is
    enough: the number of threads is set in each process anew.
    """

    def __init__(self, slots: int, gpus: tuple[int, ...] = (), warm: tuple[str, ...] = ()) -> None:
        self.slots = slots
        self._gpus = gpus
        self._ids = itertools.count(1)
        self._pids: dict[int, int] = {}
        self._started: set[int] = set()
        self._ended: list[Ended] = []
        self._gpu_of: dict[int, int] = {}
        self._pending = b""
        self._line, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        environment |= dict.fromkeys(_THREAD_VARIABLES, "1")
        # A CUDA driver that an import asked for devices does not survive a fork: ask its management library.
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "selfbench.suite.engine.forkserver", str(theirs.fileno()), *warm],
            pass_fds=(theirs.fileno(),),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for message in self._messages(0.5):
                if message.get("ready"):
                    return
            if self._server.poll() is not None:
                break
        self.close()
        raise SelfbenchError("The worker server did not start; `selfbench doctor` shows what is amiss here.")

    def submit(self, job: Job) -> int:
        work = Store(Path(job.results)).work(job.run_spec)
        file = work / "job.json"
        if self._gpus:
            job = Job(**{**job.__dict__, "gpu": self._free_gpu()})
        write_atomic(file, job.to_json().encode())
        handle = self.call("run", file, work / "log", job.gpu)
        if job.gpu is not None:
            self._gpu_of[handle] = job.gpu
        return handle

    def call(self, call: str, argument: Path, log: Path, gpu: int | None = None) -> int:
        """Fork a process for `call` (`run` or `prepare`) on the file `argument`; returns its handle."""
        handle = next(self._ids)
        request = {
            "id": handle,
            "call": call,
            "argument": str(argument.resolve()),
            "log": str(log.resolve()),
            "gpu": gpu,
        }
        try:
            self._line.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            raise SelfbenchError("The worker server has died. Run the same command again to continue.") from None
        return handle

    def _free_gpu(self) -> int:
        taken = list(self._gpu_of.values())
        return min(self._gpus, key=taken.count)

    def poll(self, timeout: float) -> list[Ended]:
        for message in self._messages(timeout):
            if "pid" in message:
                self._pids[message["id"]] = message["pid"]
            elif "code" in message:
                self._pids.pop(message["id"], None)
                self._gpu_of.pop(message["id"], None)
                self._ended.append(Ended(message["id"], message["code"]))
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, handle: int) -> None:
        pid = self._pids.get(handle)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _messages(self, timeout: float) -> list[dict[str, Any]]:
        self._line.settimeout(max(timeout, 0.001))
        try:
            data = self._line.recv(1 << 16)
        except TimeoutError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            raise SelfbenchError("The worker server has died. Run the same command again to continue.")
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._line.close()
        try:
            self._server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
