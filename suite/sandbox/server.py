"""The process in which the code of a model runs; started by `caller.py` as a script, it imports the standard library
and the packages that it is told to, and nothing of this package.

It locks itself in, says by which means, then reads batches of snippets (a line of JSON each) and answers with a line a
snippet. Each snippet runs in a fork of its own, with limits of its own, and may call the kernel for what is listed here
and nothing else: no other process, no thread, no socket, no signal but to itself.
"""

# Paths are plain texts here: `pathlib` would make the process that is forked a quarter larger.
# ruff: noqa: PTH100, PTH101, PTH103, PTH106, PTH108, PTH112, PTH114, PTH120, PTH123, PTH211

from __future__ import annotations

# Of the modules that nothing here uses, short calculations import some; more of them would make every fork slower.
import cmath  # noqa: F401
import contextlib
import ctypes
import gc
import heapq  # noqa: F401
import importlib
import itertools  # noqa: F401
import json
import math  # noqa: F401
import os
import random
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

WORK = "/work"
"""The writable folder, and the only one; in the sandbox's own view of files."""
_ROOT = "/proc"
"""Where the new root is mounted: a folder that every Linux has, and no interpreter lies in."""
_CODE_FAILED = 120
_OWN = 0x5AFE5AFE
"""Stands for the number of the process in a filter, until that is known."""
_FIRST_FILE, _MOST_FILES = 3, 64
_SEEDED = {"numpy": "numpy.random", "sympy": "sympy.core.random"}
"""Modules with a `seed` for the random numbers of a package."""
_ERROR_CHARACTERS = 200

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""Flags of a mount (`statvfs`) that a mount of it keeps, and their numbers for `mount`."""
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_READ, _WRITE = 0b1100, 0b100_0001_1011_0010
"""Landlock's rights to files and folders: to read them, and to write, remove, make, truncate them."""

_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_PIVOT_ROOT, _CAPSET = (155, 41), (126, 91)
_KILL, _TGKILL, _PRLIMIT = (62, 129), (234, 131), (302, 261)
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "lseek": (8, 62),
    "mmap": (9, 222), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "futex": (202, 98), "openat": (257, 56), "open": (2, None), "stat": (4, None),
    "lstat": (6, None), "statx": (332, 291), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "sched_yield": (24, 124), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160),
    "sysinfo": (99, 179), "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45),
    "ftruncate": (77, 46), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "readlink": (89, None), "readlinkat": (267, 78),
    "umask": (95, 166), "getrlimit": (97, 163), "getrandom": (318, 278), "set_robust_list": (273, 99),
    "rseq": (334, 293), "arch_prctl": (158, None), "exit": (60, 93), "exit_group": (231, 94), "pause": (34, None),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128), "statfs": (137, 43), "fstatfs": (138, 44),
}  # fmt: skip
"""What the code of a model may ask of the kernel: numbers on x86-64 and on AArch64. All else is refused with EPERM."""
_FCNTL, _IOCTL = (72, 25), (16, 29)
_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
"""Of `fcntl`: to duplicate descriptors (F_DUPFD, F_DUPFD_CLOEXEC), read and set their flags and those of files, lock
parts of files, and read the size of a pipe. None that says to whom, and as which signal, a file reports that it can be
read or written (F_SETOWN, F_SETOWN_EX, F_SETSIG): of these a signal to another process can be made."""
_REQUESTS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)
"""Of `ioctl`, all that the interpreter asks: whether a file is a terminal and how large it is (TCGETS, TIOCGWINSZ),
whether it blocks (FIONBIO), and whether it stays open for a program that is executed (FIONCLEX, FIOCLEX)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Unfit(Exception):
    """This system lacks what the sandbox needs; the message says what to enable."""


def _call(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _call(_libc.prctl(option, *padded), f"prctl {option}")


def _syscall(number: int, *values: Any) -> int:
    return _call(_libc.syscall(ctypes.c_long(number), *values), f"system call {number}")


# Filters of system calls


def filter_of(arch: int, column: int, pid: int) -> bytes:
    """The program (classic BPF) that lets the process `pid` call what is allowed, and answers EPERM to all else."""
    load, equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1
    out = [struct.pack("HBBI", load, 0, 0, 4), struct.pack("HBBI", equal, 1, 0, arch)]
    out += [struct.pack("HBBI", give, 0, 0, refuse), struct.pack("HBBI", load, 0, 0, 0)]

    def only(number: int, tests: list[tuple[int, int]]) -> None:
        """Allow the call `number` where the words at given places of its arguments have given values."""
        body = [
            code
            for at, value in tests
            for code in (
                struct.pack("HBBI", load, 0, 0, at),
                struct.pack("HBBI", equal, 1, 0, value),
                struct.pack("HBBI", give, 0, 0, refuse),
            )
        ]
        body.append(struct.pack("HBBI", give, 0, 0, allow))
        out.append(struct.pack("HBBI", equal, 0, len(body), number))
        out.extend(body)

    def among(number: int, at: int, values: Sequence[int]) -> None:
        """Allow the call `number` where the word `at` is one of `values`. The kernel reads no more of it."""
        out.append(struct.pack("HBBI", equal, 0, len(values) + 3, number))
        out.append(struct.pack("HBBI", load, 0, 0, at))
        out.extend(
            struct.pack("HBBI", equal, left, 0, value)
            for left, value in zip(range(len(values), 0, -1), values, strict=True)
        )
        out.extend(struct.pack("HBBI", give, 0, 0, answer) for answer in (refuse, allow))

    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            only(number, [])
    among(_FCNTL[column], 24, _COMMANDS)
    among(_IOCTL[column], 24, _REQUESTS)
    only(_KILL[column], [(16, pid)])
    only(_TGKILL[column], [(16, pid)])
    # Limits may be read, not set: the pointer to new ones must be null.
    only(_PRLIMIT[column], [(32, 0), (36, 0)])
    return b"".join([*out, struct.pack("HBBI", give, 0, 0, refuse)])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install_filter(program: bytes) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    held = _Program(len(program) // 8, program)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(held))


def drop_capabilities(column: int) -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    _syscall(_CAPSET[column], header, struct.pack("6I", *[0] * 6))


# Namespaces


def enter_namespaces() -> None:
    """A user, pid, network, IPC and mount namespace of its own; returns in its first process."""
    uid, gid = os.geteuid(), os.getegid()
    own = _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNS
    _call(_libc.unshare(own), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pid = os.fork()
    if pid:
        # The first process of a pid namespace takes all others with it when it ends.
        for number in (0, 1):
            os.close(number)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _call(result, f"mount {target}")


def change_root(readable: list[str], megabytes: int, column: int) -> None:
    """A new root: `readable` folders, read-only, and an empty writable one; the old root is gone."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", _ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in readable:
        if os.path.islink(path):
            os.makedirs(_ROOT + os.path.dirname(path), exist_ok=True)
            os.symlink(os.path.realpath(path), _ROOT + path)
    for path in dict.fromkeys(os.path.realpath(path) for path in readable):
        os.makedirs(_ROOT + path, exist_ok=True)
        _mount(path, _ROOT + path, "", _MS_BIND)
        flags = os.statvfs(_ROOT + path).f_flag
        kept = sum(number for flag, number in _KEPT_FLAGS.items() if flags & flag)
        _mount("none", _ROOT + path, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)
    os.makedirs(_ROOT + WORK)
    _mount("tmpfs", _ROOT + WORK, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={megabytes}m,nr_inodes=1024,mode=700")
    kept = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    _mount("none", _ROOT, "", kept)
    os.chdir(_ROOT)
    _syscall(_PIVOT_ROOT[column], b".", b".")
    _call(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


# Landlock


def landlock_version() -> int:
    return max(0, int(_libc.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def lock_files(version: int, readable: list[str], writable: list[str]) -> None:
    """Only `readable` folders can be read and only `writable` ones written; where the kernel can, no TCP, no signals to
    and no sockets of others."""
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rules = struct.pack("QQQ", every, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _syscall(444, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint(0))
    for path in (*readable, *writable):
        rights = _READ | (_WRITE if path in writable else 0)
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights & every, folder)
        _syscall(445, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(folder)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _syscall(446, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


# The server


def read_only_folders(packages: list[str]) -> list[str]:
    """Where the standard library, the shared libraries of the system, and `packages` lie."""
    library = os.path.dirname(os.__file__)
    found = [library, *packages]
    dynamic = getattr(sys.modules.get("_ctypes"), "__file__", None)
    if dynamic:
        found.append(os.path.dirname(dynamic))
    found += [path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if os.path.isdir(path)]
    with open("/proc/self/maps") as maps:
        mapped = [line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line]
    found += [os.path.dirname(path) for path in mapped]
    wanted = dict.fromkeys(found)
    covered = [os.path.realpath(path) for path in wanted]

    def is_inside(path: str) -> bool:
        real = os.path.realpath(path)
        return any(real != other and real.startswith(other + "/") for other in covered)

    return [path for path in wanted if not is_inside(path)]


def import_packages(names: list[str], folders: list[str]) -> list[str]:
    """Import packages from `folders`; returns where they, and what they have imported from there, lie: they load some
    of their modules later. Nothing else in `folders` can be imported afterwards."""
    before = set(sys.modules)
    sys.path += folders
    for name in names:
        importlib.import_module(name)
        if name in _SEEDED:
            importlib.import_module(_SEEDED[name])
    sys.path[:] = [path for path in sys.path if path not in folders]
    new = {name.partition(".")[0] for name in sys.modules.keys() - before}
    found = {os.path.dirname(getattr(sys.modules.get(name), "__file__", None) or "") for name in new}
    return sorted(path for path in found if os.path.dirname(path) in folders)


def lock_in(without: list[str], file_megabytes: int, packages: list[str]) -> tuple[list[str], bool]:
    """Give up everything that can be given up but to read the folders of `packages`; returns by which means, and
    whether there is a writable folder."""
    _, column = known_arch()
    means, refused = [], []
    if "seccomp" in without or not filters_calls():
        raise Unfit("filters of system calls (the kernel option CONFIG_SECCOMP_FILTER)")
    readable = read_only_folders(packages)

    def separate() -> None:
        enter_namespaces()
        change_root(readable, file_megabytes, column)

    # Tried in a child first: a process that has got half of the way cannot go back.
    namespaces = "namespaces" not in without and works(separate)
    if namespaces:
        separate()
        means.append("namespaces")
    else:
        refused.append(
            "user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        )
    version = 0 if "landlock" in without else landlock_version()
    if version:
        lock_files(version, readable, [WORK] if namespaces else [])
        means.append(f"landlock {version}")
    else:
        refused.append("Landlock (`landlock` in the kernel's `lsm=` list)")
    if not means:
        raise Unfit(f"one of: {'; '.join(refused)}")
    means.append("seccomp")
    return means, namespaces


def works(action: Callable[[], None]) -> bool:
    """Whether `action` raises no `OSError`, tried in a child."""
    pid = os.fork()
    if not pid:
        failed = 1
        try:
            with contextlib.suppress(OSError):
                action()
                failed = 0
        finally:
            os._exit(failed)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def filters_calls() -> bool:
    return works(lambda: install_filter(filter_of(*known_arch(), 0)))


def known_arch() -> tuple[int, int]:
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _ARCHES or struct.calcsize("P") != 8:
        raise Unfit("64-bit Linux on x86-64 or AArch64")
    return _ARCHES[machine]


def remove_all(folder: str) -> None:
    """Empty a folder."""
    for item in os.scandir(folder):
        if item.is_dir(follow_symlinks=False):
            os.chmod(item.path, 0o700)
            remove_all(item.path)
            os.rmdir(item.path)
        else:
            os.unlink(item.path)


class Server:
    """Runs snippets one by one, each in a fork."""

    def __init__(self, limits: dict[str, Any], writable: bool, used: int) -> None:
        self._limits, self._writable, self._used = limits, writable, used
        self._filter, self._pid = filter_of(*known_arch(), _OWN), os.getpid()
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_FILES, _MOST_FILES))
        self._null = os.pipe()
        """What a snippet reads as its standard input: an end of a pipe that nobody writes to."""
        os.close(self._null[1])
        gc.collect()
        gc.freeze()

    def run(self, code: str) -> dict[str, str]:
        limits = self._limits
        out, err = os.pipe(), os.pipe()
        deadline = time.monotonic() + limits["wall_seconds"]
        pid = os.fork()
        if not pid:
            self._child(code, out[1], err[1])
        os.close(out[1])
        os.close(err[1])
        texts = {out[0]: bytearray(), err[0]: bytearray()}
        try:
            stopped = self._watch(pid, texts, deadline)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            self._drain(texts)
            for number in texts:
                os.close(number)
            self._clean()
        return self._result(status, usage, stopped, *(bytes(text) for text in texts.values()))

    def _watch(self, pid: int, texts: dict[int, bytearray], deadline: float) -> str:
        """Wait for the end of `pid`; returns why it has to be stopped, an empty text where it has ended."""
        poll, most = select.poll(), self._limits["output_bytes"]
        try:
            ended = os.pidfd_open(pid)
        except OSError:
            ended = -1
        for number in (*texts, 0, *([ended] if ended >= 0 else [])):
            # Of the caller nothing is wanted now but whether it has gone.
            poll.register(number, 0 if number == 0 else select.POLLIN)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return "time"
                for number, _ in poll.poll(left * 1000 if ended >= 0 else min(left * 1000, 1)):
                    if number == 0:
                        os._exit(0)
                    if number == ended:
                        return ""
                    data = os.read(number, 65536)
                    texts[number] += data
                    if not data:
                        poll.unregister(number)
                    if len(texts[number]) > most:
                        return "output"
                if ended < 0 and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return ""
        finally:
            if ended >= 0:
                os.close(ended)

    def _drain(self, texts: dict[int, bytearray]) -> None:
        """What the ended process has left in its pipes."""
        for number, text in texts.items():
            while len(text) <= self._limits["output_bytes"] and (data := os.read(number, 65536)):
                text += data

    def _result(self, status: int, usage: Any, stopped: str, out: bytes, err: bytes) -> dict[str, str]:
        code = os.waitstatus_to_exitcode(status)
        if not stopped and max(len(out), len(err)) > self._limits["output_bytes"]:
            stopped = "output"
        # The kernel counts the time of a limit in ticks, the time that it reports exactly: they differ.
        used = usage.ru_utime + usage.ru_stime
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= 0.5 * self._limits["cpu_seconds"]):
            stopped = stopped or "time"
        output, error = out.decode(errors="replace"), err.decode(errors="replace")
        if stopped:
            # How far it came depends on the machine.
            return {"status": stopped, "output": "", "error": ""}
        if code == 0:
            return {"status": "ok", "output": output, "error": ""}
        if code == _CODE_FAILED:
            return {"status": "error", "output": output, "error": error.rpartition("\0")[2][:_ERROR_CHARACTERS]}
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"status": "killed", "output": output, "error": ending}

    def _clean(self) -> None:
        """Empty the writable folder."""
        if self._writable:
            remove_all(WORK)

    def _child(self, code: str, out: int, err: int) -> NoReturn:
        ending = 1
        try:
            self._confine(out, err)
            ending = self._execute(code)
        finally:
            os._exit(ending)

    def _confine(self, out: int, err: int) -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:
            os._exit(1)
        for source, target in ((self._null[0], 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        os.closerange(_FIRST_FILE, _MOST_FILES)
        limits, megabyte = self._limits, 1 << 20
        resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
        for kind, most in (
            (resource.RLIMIT_AS, self._used + limits["memory_mb"] * megabyte),
            (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            resource.setrlimit(kind, (most, most))
        if self._writable:
            os.chdir(WORK)
        install_filter(self._filter.replace(struct.pack("I", _OWN), struct.pack("I", os.getpid())))

    def _execute(self, code: str) -> int:
        # A fork seeds it anew from the system.
        random.seed(0)
        for name in _SEEDED.values():
            if name in sys.modules:
                sys.modules[name].seed(0)
        gc.enable()
        try:
            exec(compile(code, "<code>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        except SystemExit as end:
            sys.stdout.flush()
            return end.code if isinstance(end.code, int) and 0 <= end.code < 256 else int(bool(end.code))
        except BaseException as error:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            message = f"\0{type(error).__name__}: {error}".removesuffix(": ")
            os.write(2, message.encode(errors="replace")[: 4 * _ERROR_CHARACTERS])
            return _CODE_FAILED
        sys.stdout.flush()
        return 0


def main() -> None:
    limits = json.loads(sys.argv[1])
    parent = int(sys.argv[2])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    sys.argv[:] = [""]
    try:
        known_arch()
        packages = import_packages(limits["packages"], limits["folders"])
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        means, writable = lock_in(limits["without"], limits["file_mb"], packages)
        server = Server(limits, writable, used)
    except (Unfit, OSError, ImportError) as error:
        answer({"unfit": str(error)})
        return
    drop_capabilities(known_arch()[1])
    os.environ.clear()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    answer({"means": means, "writable": writable})
    pending = b""
    while data := os.read(0, 1 << 20):
        pending += data
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            for code in json.loads(line):
                answer(server.run(code))


def answer(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
