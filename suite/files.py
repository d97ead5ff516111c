"""Durable files: written beside the target, synced, renamed; digests of what lies on disk."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TRIES = 5
"""A folder may go with another process's run between its making and its use."""


def write_atomic(path: Path, data: bytes, scratch: Path | None = None, *, tries: int = _TRIES) -> None:
    """Replace `path` by `data` so that a reader, or a crash at any moment, sees the old file or the new one.

    What a crash leaves behind lies in `scratch`, a folder of the same file system (default: beside the file).
    """
    try:
        _replace(path, data, scratch)
    except FileNotFoundError:
        if tries == 1:
            raise
        write_atomic(path, data, scratch, tries=tries - 1)


def _replace(path: Path, data: bytes, scratch: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=scratch or path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_below(folder: Path) -> int:
    """The size of all files below `folder`; what other processes remove meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


def last_used(path: Path) -> float:
    """When `path` was last written or touched, in seconds; 0 where another process has removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on `path`; yields False when it is taken and `wait` is off.

    The kernel frees the lock when its holder dies, however it dies, so that no stale lock exists.
    """
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _opened(path: Path, tries: int = _TRIES) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.open("a")
    except FileNotFoundError:
        if tries == 1:
            raise
        return _opened(path, tries - 1)
