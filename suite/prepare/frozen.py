"""The cache of what no method changes, computed once for all methods of a task and seed.

<cache>/frozen/<task>-<part>-<key>/ is a bundle, written by a process that holds no method, and only read by those that
do. Of a stream a part is what the source model gives with one kind of statistics, which depends on source model, stream
and batch cuts alone: `source` and `batch` hold the public array `logits` float32 (N, K), `source-features` and
`batch-features` the array `features` float32 (N, D). Of a policy it is `first`: the weights of the first policy, and
its responses to the test problems. What does not fit is left out, and each run computes it itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import registry
from ..bundle import Bundle, BundleFolder, write_bundle
from ..files import bytes_below, last_used, locked
from ..generation import NATIVE, installed
from ..places import cache_folder
from ..source_files import imported_files
from ..spec import RunSpec, canonical
from .bundles import bundle_folder, is_whole

if TYPE_CHECKING:
    import torch

LIMIT_MB = 2048
"""How much the cache may hold, unless `SELFBENCH_FROZEN_MB` says otherwise; 0 turns it off."""
_FIRST_POLICY = Path(__file__).parents[1] / "protocols" / "first_policy.py"


def limit_mb() -> float:
    """The bound on the cache in MiB."""
    return float(os.environ.get("SELFBENCH_FROZEN_MB") or LIMIT_MB)


def frozen_folders(spec: RunSpec) -> dict[str, BundleFolder]:
    """part -> where what the method of `spec` asks for lies or will lie; none without a bundle."""
    method, task = registry.get("method", spec.method.name), registry.get("task", spec.task.name)
    if task.protocol == "policy":
        asked: Iterable[str] = ("first",)
    else:
        asked = method.options["frozen"] if spec.precision != "bf16" else ()
    if not asked or not limit_mb() or not bundle_folder(task).exists:
        return {}
    about = [bundle_folder(task).sha256, task.name, task.options["version"], spec.seed, spec.device, spec.precision,
             spec.threads, metadata.version("torch")]  # fmt: skip
    if task.protocol == "policy":
        # The training of the first policy is part of the task's source, not of its bundle.
        about += [bundle_folder(task).path.name, source_digest(_FIRST_POLICY)]
        if spec.generation != NATIVE:
            # Its responses are those of another engine.
            about += [spec.generation, installed()]
    folder = cache_folder() / "frozen"
    keys = {name: hashlib.sha256(canonical([*about, name])).hexdigest()[:12] for name in asked}
    return {name: BundleFolder(folder / f"{task.name}-{name}-{key}") for name, key in keys.items()}


@functools.cache
def source_digest(file: Path) -> str:
    """The digest of a file of code and of all that it imports from its folder, directly or by way of others."""
    files = imported_files(file, lambda module: module.parent == file.parent)
    return hashlib.sha256(b"".join(one.read_bytes() for one in sorted(files))).hexdigest()


def build_frozen(
    spec: RunSpec, part: str, tell: Callable[[str], None] = lambda _: None, keep: Iterable[Path] = ()
) -> BundleFolder:
    """Compute one folder of `frozen_folders(spec)` unless it is whole; in a process that holds no method.

    With it comes what else `spec` asks of the same passes. Room is made by removing what is not in `keep`; what does
    not fit beside that is left out, so that the folder does not exist.
    """
    from ..protocols.context import prepare_torch

    folders = made_with(spec, part)
    with contextlib.ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(locked(_lock(folder.path)))
        missing = {name: folder for name, folder in folders.items() if not is_whole(folder)}
        if part not in missing:
            return folders[part]
        for folder in missing.values():
            _remove_torn(folder.path)
        keep = [*keep, *(folder.path for folder in folders.values())]
        device = prepare_torch(spec)
        entry = registry.get("task", spec.task.name)
        task, bundle = entry.load()(), bundle_folder(entry)
        if entry.protocol == "policy":
            tell(f"the first policy of seed {spec.seed}")
            _write_first(folders[part], _first_policy(task, bundle, spec, device), keep, tell)
        else:
            _write_passes(task, bundle, spec, device, missing, keep, tell)
        return folders[part]


def made_with(spec: RunSpec, part: str) -> dict[str, BundleFolder]:
    """What of `frozen_folders(spec)` the passes of `part` give, in the order in which all builders take its locks."""
    folders = frozen_folders(spec)
    return {name: folders[name] for name in sorted(folders) if _statistics(name) == _statistics(part)}


def _statistics(part: str) -> str:
    return part.removesuffix("-features")


def _lock(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _remove_torn(folder: Path) -> None:
    """Remove what builders of `folder` that were killed have left; its lock is held."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _write_passes(
    task: Any,
    bundle: BundleFolder,
    spec: RunSpec,
    device: torch.device,
    folders: Mapping[str, BundleFolder],
    keep: Iterable[Path],
    tell: Callable[[str], None],
) -> None:
    """Write the parts `folders` of one kind of statistics that fit, batch by batch and straight to the disk."""
    import torch

    from ..protocols.features import forward_with_features
    from ..protocols.frozen_passes import order_digest, use_batch_statistics

    public, stream = bundle.public(), task.stream(bundle, spec.seed)
    statistics = _statistics(next(iter(folders)))
    model = task.model()
    model.load_state_dict(bundle.model())
    model.to(device).eval().requires_grad_(False)
    if statistics == "batch":
        use_batch_statistics(model)
    facts = {"order": order_digest(stream.indices, stream.cuts), "cpu": torch.backends.cpu.get_cpu_capability()}
    rows: dict[str, np.memmap[Any, Any]] = {}
    files: dict[str, Path] = {}
    notes: list[str] = []
    with torch.no_grad(), contextlib.ExitStack() as scratch:
        for batch in range(len(stream.cuts) - 1):
            start, stop = stream.cuts[batch], stream.cuts[batch + 1]
            shown = task.images(public, stream.indices[start:stop]).to(device)
            logits, features = forward_with_features(model, shown)
            made = (
                {statistics: logits} if features is None else {statistics: logits, f"{statistics}-features": features}
            )
            # The first batch shows how wide the rows are, before anything is written.
            for name in sorted(folders.keys() & made.keys()) if batch == 0 else ():
                shape = (len(stream.indices), made[name].shape[1])
                note = _no_room(f"frozen passes ({name}, {shape[0]:,} rows)", 4 * shape[0] * shape[1], keep)
                if note:
                    notes.append(note)
                    continue
                place = folders[name].path
                files[name] = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent)) / "rows.npy"
                scratch.callback(shutil.rmtree, files[name].parent, ignore_errors=True)
                rows[name] = np.lib.format.open_memmap(files[name], "w+", np.float32, shape)
            if not rows:
                break
            for name, out in rows.items():
                out[start:stop] = made[name].float().cpu().numpy()
            tell(f"frozen passes ({statistics} statistics): {stop:,} of {len(stream.indices):,}")
        for name in list(rows):
            rows.pop(name).flush()
            array = "features" if name.endswith("-features") else "logits"
            write_bundle(folders[name].path, Bundle({array: files[name]}, {}, facts=facts))
    if notes:
        # Last, so that whoever reads the last word of a process hears of it.
        tell("; ".join(notes))


def _no_room(what: str, size: int, keep: Iterable[Path]) -> str:
    """Make room for `size` bytes; what to say where there is none, and "" where there is."""
    if prune(keep, size):
        return ""
    return (
        f"{what} would take {size / 2**20:,.0f} MB and the cache may hold {limit_mb():,.0f} MB: every run computes "
        "them itself (SELFBENCH_FROZEN_MB raises the bound)"
    )


def _first_policy(task: Any, bundle: BundleFolder, spec: RunSpec, device: torch.device) -> Bundle:
    import torch

    from ..protocols.first_policy import make_first

    problems = task.problems(bundle, spec.seed)
    made = make_first(task, bundle.public(), bundle.model(), problems, spec, device, bundle.private())
    return Bundle(made.responses, {}, made.weights, {"cpu": torch.backends.cpu.get_cpu_capability()})


def _write_first(folder: BundleFolder, made: Bundle, keep: Iterable[Path], tell: Callable[[str], None]) -> None:
    weights = (made.model or {}).values()
    size = sum(array.nbytes for array in (*made.public.values(), *weights) if not isinstance(array, Path))
    note = _no_room("the first policy and its responses", size, keep)
    if note:
        tell(note)
    else:
        write_bundle(folder.path, made)


def prune(keep: Iterable[Path], room: int = 0) -> bool:
    """Remove what was used longest ago until the cache, with `room` bytes more, is within its bound; `keep` stays.

    Returns whether it is. Where `room` cannot be made, nothing is removed for it.
    """
    root, kept, limit = cache_folder() / "frozen", set(keep), limit_mb() * 2**20
    if not root.is_dir():
        return room <= limit
    for path in kept:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=last_used)
    sizes = {path: bytes_below(path) for path in folders}
    total = sum(sizes.values())
    removable = [path for path in folders if path not in kept and not _being_written(path)]
    if room and total - sum(sizes[path] for path in removable) + room > limit:
        return False
    for path in removable:
        if total + room <= limit:
            break
        shutil.rmtree(path, ignore_errors=True)
        total -= sizes[path]
    return total + room <= limit


def _being_written(path: Path) -> bool:
    """Whether `path` is the unfinished folder of a builder that lives, which holds the lock of the finished one."""
    if not path.name.startswith("."):
        return False
    with locked(_lock(path.with_name(path.name[1:].rpartition(".")[0])), wait=False) as free:
        return not free
