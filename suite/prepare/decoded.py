"""The cache of decoded pictures: the image files of a task, decoded and resized once, for all runs on them.

<cache>/decoded/<bundle>-<key>/
    pixels          rows of the task's first examples end to end, the values that its `decoded` returns
    state.json      how many rows there are, their shape and dtype, and the seconds that they took

The state is written when its rows are on the disk, so that whoever reads it sees whole rows, and a decoding that was
interrupted goes on after them. A task registers what it would keep (`decoded`); what does not fit into the bound is
decoded at each access. Nothing random is kept: views are made of what lies here as of what is decoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..bundle import Array, BundleFolder
from ..files import last_used, locked, write_atomic
from ..places import cache_folder
from ..spec import canonical
from .bundles import bundle_folder
from .decoded_option import Decoded, declared, limit_bytes

PUBLIC = "decoded"
"""The name of the rows among the public arrays of a run."""
FREE_SHARE = 0.5
"""Of what is free on the disk it takes no more."""
_BLOCK = 32 * 2**20
_SYNC_SECONDS = 5.0
_COMPARED = 8
Decode = Callable[[Array], Array]


@dataclass(frozen=True)
class DecodedFolder:
    """A folder of the cache, which may be there as a whole, in part or not at all."""

    path: Path
    wanted: Decoded

    @property
    def rows(self) -> int:
        """How many rows are there and whole."""
        state, pixels = _state(self.path), self.path / "pixels"
        if state is None or (tuple(state["shape"]), state["dtype"]) != (self.wanted.shape, self.wanted.dtype):
            return 0
        size = pixels.stat().st_size if pixels.is_file() else 0
        return min(int(state["rows"]), size // self.wanted.row, self.wanted.pictures)

    def text(self) -> str:
        """What of the pictures is here, and what is done with the rest."""
        here, pictures, row = self.rows, self.wanted.pictures, self.wanted.row
        held = f"{here:,} of {pictures:,} pictures are kept decoded ({here * row / 1e9:.1f} GB)"
        if here >= pictures:
            return held
        return (
            f"{held}; the others are decoded at each access, for want of room: SELFBENCH_DECODED_GB is "
            f"{limit_bytes() / 1e9:g}, all would take {pictures * row / 1e9:.1f} GB, and half of what is free on the "
            "disk is left free"
        )


def decoded_folder(task: registry.Entry) -> DecodedFolder | None:
    """Where the decoded pictures of `task` lie or will lie; None where it keeps none, and before its bundle is built.

    The key stands for the bundle's content, which names every file and its size or holds the files themselves, for
    shape and type of the rows, and for the libraries that decode.
    """
    wanted = declared(task)
    return None if wanted is None else folder_of(wanted, bundle_folder(task), task.options["bundle"] or task.name)


def folder_of(wanted: Decoded, bundle: BundleFolder, name: str) -> DecodedFolder | None:
    """`decoded_folder` of a bundle, whose facts say how many `pictures` there are, and what else tells them apart."""
    if not bundle.exists or not limit_bytes():
        return None
    facts = bundle.facts
    about = [bundle.sha256, facts.get("pictures_sha256", ""), wanted.shape, wanted.dtype, _decoders()]
    key = hashlib.sha256(canonical(about)).hexdigest()[:12]
    found = Decoded(int(facts["pictures"]), wanted.shape, wanted.dtype)
    return DecodedFolder(cache_folder() / "decoded" / f"{name}-{key}", found)


def rows_to_keep(folder: DecodedFolder, keep: Iterable[Path] = ()) -> int:
    """How many of the first rows there is room for, beside the folders `keep`, which are in use as well."""
    own = folder.rows * folder.wanted.row
    others = sum(_size(path) for path in {*keep} - {folder.path})
    room = min(limit_bytes() - others, own + FREE_SHARE * _free(folder.path))
    return max(folder.rows, min(folder.wanted.pictures, int(max(0.0, room) // folder.wanted.row)))


def build_decoded(
    task: registry.Entry, keep: Sequence[Path] = (), tell: Callable[[str], None] = lambda _: None
) -> DecodedFolder | None:
    """Decode what is missing of the pictures of `task` and fits; in a process that holds no method.

    Raises `DataMissing` naming the file that is torn or gone; what was decoded before it stays.
    """
    folder = decoded_folder(task)
    if folder is None:
        return None
    made, public = task.load()(), bundle_folder(task).public()
    with locked(folder.path.parent / f".{folder.path.name}.lock"):
        _prune(folder, keep)
        fill(folder, lambda rows: made.decoded(public, rows), rows_to_keep(folder, keep), tell)
    return folder


def fill(folder: DecodedFolder, decode: Decode, rows: int, tell: Callable[[str], None] = lambda _: None) -> None:
    """Go on with the decoding until the first `rows` rows are there.

    `decode` makes the examples at an index (n,) as an array (n, ...) of the folder's shape. A few of the rows that are
    there are made anew and compared; where one is another, all are. A file is written, not mapped: on a full disk that
    is an error, and no signal.
    """
    path, wanted, started = folder.path, folder.wanted, time.monotonic()
    begin = folder.rows
    if begin and not _same(folder, decode, begin):
        tell("the pictures have changed: decoding them again")
        begin = 0
    seconds = float((_state(path) or {}).get("seconds", 0.0)) if begin else 0.0
    path.mkdir(parents=True, exist_ok=True)
    if not begin:
        (path / "state.json").unlink(missing_ok=True)
    with (path / "pixels").open("r+b" if begin else "wb") as file:
        file.truncate(begin * wanted.row)
        file.seek(0, os.SEEK_END)
        synced = started
        step = max(1, _BLOCK // wanted.row)
        for start in range(begin, rows, step):
            stop = min(rows, start + step)
            block = np.ascontiguousarray(decode(np.arange(start, stop)), wanted.dtype)
            if block.shape != (stop - start, *wanted.shape):
                raise ValueError(f"decoded pictures have the shape {block.shape[1:]}, registered is {wanted.shape}")
            file.write(block.data)
            now = time.monotonic()
            if stop == rows or now - synced >= _SYNC_SECONDS:
                file.flush()
                os.fsync(file.fileno())
                state = {
                    "rows": stop,
                    "shape": wanted.shape,
                    "dtype": wanted.dtype,
                    "seconds": round(seconds + now - started, 3),
                }
                write_atomic(path / "state.json", json.dumps(state).encode())
                synced = now
            left = (now - started) / (stop - begin) * (rows - stop)
            tell(f"decoding {stop:,} of {rows:,} pictures ({wanted.row * rows / 1e9:.1f} GB), {left:.0f} s left")


def read_decoded(path: Path | str) -> dict[str, Array]:
    """The rows at `path` as a public array, mapped and never written to; nothing where there are none."""
    state, pixels = _state(Path(path)) if path else None, Path(path) / "pixels"
    if state is None or not pixels.is_file():
        return {}
    folder = DecodedFolder(Path(path), Decoded(int(state["rows"]), tuple(state["shape"]), state["dtype"]))
    shape = (folder.rows, *folder.wanted.shape)
    return {PUBLIC: np.memmap(pixels, state["dtype"], "r", shape=shape)} if folder.rows else {}


def decoded_seconds(path: Path | str) -> float:
    """What the decoding has taken, in all."""
    return float((_state(Path(path)) or {}).get("seconds", 0.0)) if path else 0.0


def rows_of(public: Mapping[str, Array], indices: Array, decode: Decode) -> Array:
    """The examples at `indices` (n,): from the cache those that are there, by `decode` the others; in their order."""
    kept = public.get(PUBLIC)
    indices = np.asarray(indices)
    if kept is None:
        return decode(indices)
    here = indices < len(kept)
    if here.all():
        return np.asarray(kept[indices])
    if not here.any():
        return decode(indices)
    result = np.empty((len(indices), *kept.shape[1:]), kept.dtype)
    result[here] = kept[indices[here]]
    result[~here] = decode(indices[~here])
    return result


def _same(folder: DecodedFolder, decode: Decode, rows: int) -> bool:
    chosen = np.unique(np.linspace(0, rows - 1, _COMPARED).astype(np.int64))
    return bool(np.array_equal(read_decoded(folder.path)[PUBLIC][chosen], decode(chosen)))


def _prune(folder: DecodedFolder, keep: Iterable[Path]) -> None:
    """Remove what was used longest ago, and is not among `keep`, until there is room for all rows of `folder`."""
    kept = {folder.path, *keep}
    missing = (folder.wanted.pictures - folder.rows) * folder.wanted.row
    others = sorted((path for path in folder.path.parent.glob("*") if path.is_dir()), key=last_used)
    total = sum(map(_size, others))
    for path in others:
        if total + missing <= limit_bytes() and missing <= FREE_SHARE * _free(folder.path):
            return
        if path not in kept:
            total -= _size(path)
            shutil.rmtree(path, ignore_errors=True)


def used(folder: DecodedFolder) -> None:
    """Note that `folder` is in use: what was used longest ago leaves the cache first."""
    with contextlib.suppress(OSError):
        os.utime(folder.path)


def _state(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def _size(path: Path) -> int:
    try:
        return (path / "pixels").stat().st_size
    except OSError:
        return 0


def _free(path: Path) -> int:
    """Bytes that are free on the disk of `path`, which need not be there yet."""
    there = next(parent for parent in path.parents if parent.exists())
    return shutil.disk_usage(there).free


def _decoders() -> list[str]:
    """The versions of what turns files into pixels."""
    try:
        from PIL import features
    except ImportError:
        return []
    return [str(features.version(name)) for name in ("pil", "jpg", "zlib", "webp")]
