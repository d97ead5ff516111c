"""Runs code that a model wrote, where it can do no harm: in another process, behind several walls.

A server (`server.py`) starts once, in a tenth of a second, and forks for every snippet, which takes some
milliseconds. What holds a snippet:

- a filter of system calls (seccomp), always: no other process, no thread, no program, no socket, no signal to others;
- files: a root of its own in namespaces of its own, or Landlock, or both; without either no code is run. The standard
  library can be read, and the packages that the sandbox is given, nothing else of this machine. With namespaces there
  is an empty writable folder in memory; without them nothing can be written;
- limits of processor time, of time, of memory, of the size of files and of output;
- no environment, no open files of the caller; the server and what it runs die with the caller.

Packages beside the standard library, such as numpy and sympy, are imported by the server before it locks itself in, so
that snippets find them loaded; what they load later lies in their own folders.

Results are those of the code alone: the seed of hashes and of `random` is fixed, as are those of `numpy.random` and
sympy, and nothing is kept of the output of what ran into a limit. Code that reads the clock, the system's random
numbers or addresses in memory is not held to it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SelfbenchError

_SERVER = Path(__file__).with_name("server.py")
_START_SECONDS, _GRACE_SECONDS = 60.0, 30.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""For packages that would start threads as they are imported: a process with threads can neither be locked in nor
forked."""
_STRIKES = 2
"""How often the server may be lost at one snippet, such as to a lack of memory, until that counts as its own doing."""


class SandboxError(SelfbenchError):
    """Code cannot be run safely here; the message says what this system lacks."""


class Ran(NamedTuple):
    """How a snippet ended and what it printed.

    `status`: `ok`; `error`, an exception that `error` names; `killed`, by a signal or an exit code that `error` names;
    `time` or `output`, a limit that it ran into, after which nothing is kept of its output.
    """

    status: str
    output: str
    error: str


@dataclass(frozen=True)
class Limits:
    """What one snippet may take: whole seconds of a processor, seconds of time, MiB of memory above the interpreter's,
    bytes of output, MiB of files.

    The processor's is the one to meet: time also passes where others work. `without` names walls to be left out, of
    `namespaces` and `landlock`: for tests of each alone.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 20.0
    memory_mb: int = 256
    output_bytes: int = 16384
    file_mb: int = 8
    without: tuple[str, ...] = ()


class Sandbox:
    """Runs snippets of Python; starts its server with the first of them, and again where it was lost.

    `packages` are those that snippets may import beside the standard library, and what these import; a missing one is a
    `SandboxError`. It may be closed and used again; it is closed when nobody holds it any longer. In a fork of the
    process that made it, it starts a server of its own.
    """

    def __init__(self, limits: Limits = Limits(), packages: Sequence[str] = ()) -> None:
        self.limits, self.packages = limits, tuple(packages)
        self._server: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._means: tuple[str, ...] = ()
        self._pending = b""
        self._lock = threading.Lock()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def means(self) -> tuple[str, ...]:
        """By which means code is held here; raises `SandboxError` where they do not suffice."""
        with self._lock:
            self._start()
        return self._means

    @property
    def can_write(self) -> bool:
        """Whether snippets have a writable folder, where they begin."""
        return "namespaces" in self.means

    def run(self, snippets: Sequence[str]) -> list[Ran]:
        """How each snippet ended; equal ones run once. Raises `SandboxError` where no code can be run safely."""
        found: dict[str, Ran] = {}
        strikes = 0
        with self._lock:
            while todo := [code for code in dict.fromkeys(snippets) if code not in found]:
                self._start()
                for code, ran in self._batch(todo):
                    found[code] = ran
                    strikes = 0
                left = next((code for code in todo if code not in found), None)
                if left is not None:
                    self.close()
                    strikes += 1
                    if strikes == _STRIKES:
                        found[left], strikes = Ran("killed", "", "the sandbox was lost"), 0
        return [found[code] for code in snippets]

    def close(self) -> None:
        """End the server and all that it runs."""
        if self._server is not None:
            if self._owner == os.getpid():
                self._end()
            self._server = None
        self._pending = b""

    def _batch(self, snippets: list[str]) -> Iterator[tuple[str, Ran]]:
        """The snippets with their results, as many as the server answers."""
        server = self._server
        assert server is not None
        assert server.stdin is not None
        with contextlib.suppress(OSError):
            server.stdin.write(json.dumps(snippets).encode() + b"\n")
            server.stdin.flush()
        for code in snippets:
            reply = self._read(self.limits.wall_seconds + _GRACE_SECONDS)
            if reply is None:
                return
            yield code, Ran(reply["status"], reply["output"], reply["error"])

    def _start(self) -> None:
        if self._server is not None and self._owner == os.getpid() and self._server.poll() is None:
            return
        self.close()
        if sys.platform != "linux":
            raise SandboxError("Code of a model is run on Linux alone: other systems lack the means to hold it.")
        # Not isolated by -I, which would ignore the seed of hashes: the environment has nothing else in it.
        command = [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(_SERVER)]
        granted = {"packages": self.packages, "folders": _folders(self.packages)}
        arguments = [json.dumps(asdict(self.limits) | granted), str(os.getpid())]
        server = subprocess.Popen(
            command + arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", **_ONE_THREAD}, cwd="/", start_new_session=True,
        )  # fmt: skip
        self._server, self._owner = server, os.getpid()
        self._end = weakref.finalize(self, _end, server, os.getpid())
        reply = self._read(_START_SECONDS)
        if reply is None or "unfit" in reply:
            self.close()
            lack = reply["unfit"] if reply else f"{sys.executable}, which did not start {_SERVER.name}"
            raise SandboxError(f"Code of a model is not run here, for nothing would hold it. It needs {lack}.")
        self._means = tuple(reply["means"])

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the server; None where none comes in time."""
        server, deadline = self._server, time.monotonic() + seconds
        assert server is not None
        assert server.stdout is not None
        number = server.stdout.fileno()
        while b"\n" not in self._pending:
            ready, _, _ = select.select([number], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(number, 1 << 20) if ready else b""
            if not data:
                return None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))


def _folders(packages: Sequence[str]) -> list[str]:
    """The folders in which the packages lie, each once."""
    found: dict[str, None] = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise SandboxError(f"The code of this task imports the package {name}: type `pip install {name}`.")
        found[str(Path(next(iter(spec.submodule_search_locations))).parent)] = None
    return list(found)


def _end(server: subprocess.Popen[bytes], owner: int) -> None:
    """Kill a server; what it runs dies with it. A fork of its owner has nothing to end."""
    if os.getpid() != owner:
        return
    server.kill()
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    server.wait()
