"""Methods and tasks by name, without importing them.

A registered class is declared by a decorator with literal arguments. Listing reads those arguments from the parsed
source (`ast`), so that neither the file nor torch is imported until a run needs the class; what was read is kept until
the file changes (`cache.py`). Places that are searched:
the rooms `methods/` and `tasks/` of this package, the folders in `$SELFBENCH_PATH`, and the installed entry points of
the groups `selfbench.methods` and `selfbench.tasks`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError, did_you_mean
from .cache import Form, read_cached
from .entry import Entry, Hyper
from .registration import Kind, RegistryError
from .source import READERS, read_file

PACKAGE = Path(__file__).resolve().parents[2]


def entries(kind: Kind) -> dict[str, Entry]:
    """All registered entries of one kind by name; raises `RegistryError` when two files claim one name."""
    return dict(_entries(kind, os.environ.get("SELFBENCH_PATH", "")))


def get(kind: Kind, name: str) -> Entry:
    """The entry called `name`; the error of an unknown name proposes the nearest one."""
    known = entries(kind)
    if name not in known:
        raise UsageError(f"There is no {kind} '{name}'.{did_you_mean(name, known)} `selfbench list {kind}s` shows all.")
    return known[name]


@functools.lru_cache(maxsize=8)
def _entries(kind: Kind, search_path: str) -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in _all(kind, search_path):
        other = found.get(entry.name)
        if other is not None and (other.file, other.qualname) != (entry.file, entry.qualname):
            raise RegistryError(
                f"The {kind} '{entry.name}' is registered twice: by {other.qualname} in {other.file} "
                f"and by {entry.qualname} in {entry.file}. Rename one of them."
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def _all(kind: Kind, search_path: str) -> Iterator[Entry]:
    room = PACKAGE / f"{kind}s"
    yield from _read_folder(kind, room, "selfbench")
    for folder in filter(None, search_path.split(os.pathsep)):
        path = Path(folder).resolve()
        if not path.exists():
            raise RegistryError(f"SELFBENCH_PATH names '{folder}', which does not exist.")
        yield from _read_folder(kind, path, None) if path.is_dir() else read_file(kind, path, None)
    yield from _entry_points(kind)


def _read_folder(kind: Kind, folder: Path, package: str | None) -> Iterator[Entry]:
    """The registrations in all files below `folder`, which are modules of `package` where there is one."""

    def module(file: Path) -> str | None:
        return ".".join((package, *file.relative_to(PACKAGE).with_suffix("").parts)) if package else None

    def read(file: Path) -> list[Entry]:
        return list(read_file(kind, file, module(file)))

    def freeze(entry: Entry) -> Any:
        hypers = [[getattr(item, name) for name in Hyper.__match_args__] for item in entry.hypers]
        return [entry.name, entry.qualname, entry.doc, entry.options, hypers, entry.presets, entry.changed]

    def thaw(file: Path, frozen: Any) -> Entry:
        name, qualname, doc, options, hypers, presets, changed = frozen
        declared = tuple(Hyper(*map(_tuples, item)) for item in hypers)
        options, presets, changed = _tuples(options), _tuples(presets), _tuples(changed)
        return Entry(kind, name, qualname, file, module(file), doc, options, declared, presets, changed)

    yield from read_cached(folder, kind, [Path(__file__), *READERS], read, Form(freeze, thaw))


def _tuples(value: Any) -> Any:
    """JSON values with tuples in place of lists."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _entry_points(kind: Kind) -> Iterator[Entry]:
    """Entry points name a module (`pkg.module`) or a class in it (`pkg.module:Class`)."""
    if not _announced(f"selfbench.{kind}s"):
        return
    from importlib.metadata import entry_points

    for point in entry_points(group=f"selfbench.{kind}s"):
        try:
            spec = importlib.util.find_spec(point.module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise RegistryError(
                f"Entry point '{point.name}' names the module '{point.module}', which is not installed."
            )
        for entry in read_file(kind, Path(spec.origin).resolve(), point.module):
            if not point.attr or point.attr == entry.qualname:
                yield entry


def _announced(group: str) -> bool:
    """Whether an installed distribution may have entry points of `group`: importing the library to ask takes longer."""
    for place in map(Path, dict.fromkeys(sys.path)):
        if place.is_file():
            return True
        with contextlib.suppress(OSError), os.scandir(place) as found:
            for item in found:
                if item.name.endswith((".dist-info", ".egg-info")):
                    with contextlib.suppress(OSError):
                        if group.encode() in Path(item.path, "entry_points.txt").read_bytes():
                            return True
    return False
