"""The cache of what no method changes, computed once for all methods of a task and seed.

<cache>/frozen/<task>-<part>-<key>/ is a bundle, written by a process that holds no method, and only read by those that
do. Of a stream a part is the passes of the source model with one kind of statistics, which depend on source model,
stream and batch cuts alone: the public arrays `logits` float32 (N, K) and `features` (N, D). Of a policy it is `first`:
the weights of the first policy, and its responses to the test problems.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def build_frozen(spec: RunSpec, part: str, tell: Callable[[str], None] = lambda _: None) -> BundleFolder:
    """Compute one folder of `frozen_folders(spec)` unless it is whole; in a process that holds no method."""
    from ..protocols.context import prepare_torch

    folder = frozen_folders(spec)[part]
    with locked(folder.path.parent / f".{folder.path.name}.lock"):
        if is_whole(folder):
            return folder
        device = prepare_torch(spec)
        entry = registry.get("task", spec.task.name)
        task, bundle = entry.load()(), bundle_folder(entry)
        if entry.protocol == "policy":
            tell(f"the first policy of seed {spec.seed}")
            return write_bundle(folder.path, _first_policy(task, bundle, spec, device))
        return write_bundle(folder.path, _passes(task, bundle, spec, device, part, tell))


def _passes(
    task: Any, bundle: BundleFolder, spec: RunSpec, device: torch.device, statistics: str, tell: Callable[[str], None]
) -> Bundle:
    import torch

    from ..protocols.features import forward_with_features
    from ..protocols.frozen_passes import order_digest, use_batch_statistics

    public, stream = bundle.public(), task.stream(bundle, spec.seed)
    model = task.model()
    model.load_state_dict(bundle.model())
    model.to(device).eval().requires_grad_(False)
    if statistics == "batch":
        use_batch_statistics(model)
    rows = []
    with torch.no_grad():
        for batch in range(len(stream.cuts) - 1):
            chosen = stream.indices[stream.cuts[batch] : stream.cuts[batch + 1]]
            logits, features = forward_with_features(model, task.images(public, chosen).to(device))
            rows.append((logits.float().cpu(), None if features is None else features.float().cpu()))
            tell(f"frozen passes ({statistics} statistics): {stream.cuts[batch + 1]:,} of {len(stream.indices):,}")
    arrays = {"logits": torch.cat([row[0] for row in rows]).numpy()}
    if all(row[1] is not None for row in rows):
        arrays["features"] = torch.cat([row[1] for row in rows if row[1] is not None]).numpy()
    facts = {"order": order_digest(stream.indices, stream.cuts), "cpu": torch.backends.cpu.get_cpu_capability()}
    return Bundle(arrays, {}, facts=facts)


def _first_policy(task: Any, bundle: BundleFolder, spec: RunSpec, device: torch.device) -> Bundle:
    import torch

    from ..protocols.first_policy import make_first

    problems = task.problems(bundle, spec.seed)
    made = make_first(task, bundle.public(), bundle.model(), problems, spec, device, bundle.private())
    return Bundle(made.responses, {}, made.weights, {"cpu": torch.backends.cpu.get_cpu_capability()})


def prune(keep: Iterable[Path]) -> None:
    """Remove what was used longest ago until the cache is within its bound; `keep` stays."""
    root, kept = cache_folder() / "frozen", set(keep)
    if not root.is_dir():
        return
    for path in kept:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=last_used)
    sizes = {path: bytes_below(path) for path in folders}
    total = sum(sizes.values())
    for path in folders:
        if total <= limit_mb() * 2**20:
            return
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
