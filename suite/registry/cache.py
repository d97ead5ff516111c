"""What was read from the source files of a folder, kept in the user's cache folder: listing parses only what changed.

One file per folder of sources: a SHA-256, then JSON. It can be deleted at any moment. Whatever is wrong with it, the
sources are read again; where it cannot be written, they are read each time. A source file is known by path, size and
times of change. One that changed in the last seconds is not kept: within the grain of the file system's clock it could
change once more and look the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..places import cache_folder

_SETTLED_NS = 2_000_000_000
_Item = TypeVar("_Item")


class Form(NamedTuple):
    """How an item is written as JSON values, and made again from them and the path of its source file."""

    freeze: Callable[[Any], Any]
    thaw: Callable[[Path, Any], Any]


def read_cached(
    folder: Path, name: str, parts: Sequence[Path], read: Callable[[Path], list[_Item]], form: Form
) -> Iterator[_Item]:
    """All that `read` finds in the Python files below `folder`, in the order of their paths.

    `name` says what is read. `parts` are the source files of the reader itself: a change in one of them empties the
    cache. It is written when all files could be read; a file whose items do not survive `form` is read each time.
    """
    file = cache_folder() / "registry" / f"{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
    key = [sys.version, str(folder), *(_stamp(path) for path in (Path(__file__), *parts))]
    known = _load(file, key)
    fresh: dict[str, list[Any]] = {}
    settled = time.time_ns() - _SETTLED_NS
    for path in _sources(folder):
        stamp = _stamp(path)
        kept = known.get(str(path))
        if kept is not None and kept[0] == stamp:
            fresh[str(path)] = kept
            yield from (form.thaw(path, frozen) for frozen in kept[1])
            continue
        items = read(path)
        frozen = _frozen(items, path, form)
        if frozen is not None and stamp is not None and max(stamp[1:]) < settled:
            fresh[str(path)] = [stamp, frozen]
        yield from items
    if fresh != known:
        _save(file, key, fresh)


def _sources(folder: Path) -> list[Path]:
    return sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names if name.endswith(".py"))


def _stamp(path: Path) -> list[int] | None:
    """Size and times of change; the second time moves even when a file is replaced by one that claims an older date."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _frozen(items: list[_Item], path: Path, form: Form) -> list[Any] | None:
    """The items as JSON values, None where they would come back changed."""
    try:
        frozen: list[Any] = json.loads(json.dumps([form.freeze(item) for item in items]))
    except (TypeError, ValueError):
        return None
    return frozen if [form.thaw(path, item) for item in frozen] == items else None


def _load(file: Path, key: list[Any]) -> dict[str, list[Any]]:
    """Path -> (stamp, items) of an intact cache that was made with `key`, else nothing."""
    try:
        digest, _, text = file.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            return {}
        made_with, files = json.loads(text)
    except (OSError, ValueError, TypeError):
        return {}
    return files if made_with == key else {}


def _save(file: Path, key: list[Any], files: dict[str, list[Any]]) -> None:
    """Replace the cache in one step; a folder that cannot be written is no fault."""
    from ..files import write_atomic

    text = json.dumps([key, files]).encode()
    with contextlib.suppress(OSError):
        write_atomic(file, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
