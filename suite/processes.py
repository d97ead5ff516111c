"""Processes of a run: nobody survives its end, whatever it spawned, and nobody takes more memory than it may."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Be killed when the process `parent` dies (Linux); leave at once when it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent dies (Linux), so that they can be found and ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_group(pid: int) -> None:
    """Kill the process group led by `pid`."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_descendants() -> None:
    """Kill everything below this process, in rounds, so that what was adopted meanwhile goes too."""
    for _ in range(20):
        children = psutil.Process().children(recursive=True)
        if not children:
            return
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        psutil.wait_procs(children, timeout=0.1)


def limit_memory(megabytes: int) -> None:
    """Refuse allocations beyond `megabytes` MiB above what this process has now (Linux: private writable memory)."""
    if sys.platform != "linux":
        return
    with open("/proc/self/status") as file:  # noqa: PTH123 - one line of a kernel file
        used = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    limit = used + megabytes * 1024 * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit <= hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _resident(process: psutil.Process) -> int:
    """Bytes of resident memory that no file stands behind (Linux); all resident memory elsewhere."""
    if sys.platform != "linux":
        return int(process.memory_info().rss)
    with open(f"/proc/{process.pid}/status") as file:  # noqa: PTH123 - a kernel file
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(("RssAnon:", "RssShmem:")))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of the host or of the device, could not be had."""
    import torch

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and any(said in str(error) for said in ("can't allocate memory", "bad_alloc")):
        return True
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def group_memory_mb(pid: int) -> float:
    """Resident memory of `pid` and all of its descendants, in MiB; 0 when it has gone.

    Pages of mapped files do not count: a stream over a bundle larger than the limit keeps all that it has shown mapped,
    and the system takes these pages back when it wants them.
    """
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                total += _resident(process)
    except psutil.Error:
        return 0.0
    return total / (1024 * 1024)


def close_files_except(keep: set[int]) -> None:
    """Close every inherited file but the standard streams and `keep`."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/fd"):  # noqa: PTH208
            number = int(name)
            if number > 2 and number not in keep:
                with contextlib.suppress(OSError):
                    os.close(number)
