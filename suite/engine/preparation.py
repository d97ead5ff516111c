"""Before the runs: data sets are fetched and bundles built, once each, in processes of their own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import registry
from ..builder import write_request
from ..errors import SelfbenchError
from ..frozen import frozen_folders, prune
from ..prepare import bundle_folder, data_sets, fetch_missing, is_whole, source_folders
from ..spec import RunSpec
from ..store import Store
from .local import LocalExecutor

_POLL_SECONDS = 0.5


def prepare(specs: Sequence[RunSpec], executor: LocalExecutor, store: Store, tell: Callable[[str], None]) -> None:
    """Fetch and build what `specs` need; raises `SelfbenchError` with the builder's reason when one fails."""
    names = dict.fromkeys((spec.task.name, spec.method.name) for spec in specs)
    pairs = [(registry.get("task", task), registry.get("method", method)) for task, method in names]
    fetch_missing(data_sets(pairs), tell)
    seen: set[Path] = set()
    for task, method in pairs:
        for part, folder in {"": bundle_folder(task), **source_folders(task, method)}.items():
            if folder.path not in seen and not is_whole(folder):
                _build(task, executor, store, tell, part=part)
            seen.add(folder.path)
    _compute_frozen(specs, executor, store, tell)


def _compute_frozen(
    specs: Sequence[RunSpec], executor: LocalExecutor, store: Store, tell: Callable[[str], None]
) -> None:
    folders: set[Path] = set()
    for spec in specs:
        for part, folder in frozen_folders(spec).items():
            if folder.path not in folders and not is_whole(folder):
                task = registry.get("task", spec.task.name)
                about = {"spec": spec.model_dump(mode="json"), "part": part}
                _build(task, executor, store, tell, gpu=0 if spec.device == "cuda" else None, **about)
            folders.add(folder.path)
    prune(folders)


def warm_modules(specs: Sequence[RunSpec]) -> tuple[str, ...]:
    """The modules of this package's tasks among `specs`; what others wrote is never imported into the server."""
    tasks = [registry.get("task", name) for name in dict.fromkeys(spec.task.name for spec in specs)]
    modules = [task.module for task in tasks if task.module and task.module.startswith("selfbench.tasks.")]
    return tuple(dict.fromkeys(modules))


def _build(
    task: registry.Entry, executor: LocalExecutor, store: Store, tell: Callable[[str], None],
    gpu: int | None = None, **about: Any,
) -> None:  # fmt: skip
    work = store.root / ".work" / "prepare"
    request = write_request(task, work, **about)
    status = request.with_suffix(".status")
    status.unlink(missing_ok=True)
    tell(f"preparing {task.name}")
    handle = executor.call("prepare", request, work / f"{task.name}.log", gpu)
    said = ""
    while True:
        ended = [item for item in executor.poll(_POLL_SECONDS) if item.handle == handle]
        answer: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(status.read_text())
        text = answer.get("progress", "")
        if text and text != said:
            said = text
            tell(f"preparing {task.name}: {text}")
        if not ended:
            continue
        if ended[0].code:
            reason = answer.get("error") or f"the builder ended with code {ended[0].code}"
            raise SelfbenchError(f"Task '{task.name}' could not be prepared: {reason} (log: {work / task.name}.log)")
        return
