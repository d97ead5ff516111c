"""Before the runs: data sets are fetched, bundles built, frozen parts made, once each, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import registry
from ..bundle import BundleFolder
from ..errors import SelfbenchError
from ..prepare.builder import DECODED, write_request
from ..prepare.bundles import bundle_folder, data_of, is_whole, missing_data, source_folders
from ..prepare.decoded import decoded_folder, rows_to_keep, used
from ..prepare.frozen import frozen_folders, made_with, prune
from ..record import Status
from ..spec import RunSpec
from ..store import Store
from .executor import Ended
from .local import LocalExecutor

_POLL_SECONDS = 0.5
_LATE = {"adaptation": ("sklearn.neighbors",)}
"""By protocol, what its loop imports only where it is needed."""


@dataclass(frozen=True)
class Unprepared:
    """Why something could not be made, and the status of the runs that need it."""

    status: Status
    reason: str


@dataclass(frozen=True)
class _Step:
    """One process: a task's bundle with its data, or the part that `about` names: of its source, or of the cache."""

    task: registry.Entry
    about: dict[str, Any]
    gpu: int | None = None


def _frozen_step(specs: Sequence[RunSpec], folder: BundleFolder, part: str) -> tuple[_Step, list[Path]]:
    """The step that computes `folder` with what any of `specs` asks of the same passes, and all that it computes."""
    # Of tasks whose bundle is not there yet, no folder is known, and none is in the cache.
    asked = [(spec, frozen_folders(spec)) for spec in specs]
    spec = max((one for one in asked if folder in one[1].values()), key=lambda one: len(one[1]))[0]
    keep = {str(other.path) for _, found in asked for other in found.values()}
    about = {"spec": spec.model_dump(mode="json"), "part": part, "keep": sorted(keep)}
    step = _Step(registry.get("task", spec.task.name), about, gpu=0 if spec.device == "cuda" else None)
    return step, [other.path for other in made_with(spec, part).values()]


class Preparation:
    """What runs need, made task by task, one process at a time, while runs that have all they need may go on.

    Whoever polls the executor hands over what has ended (`took`). `settled` are the ids of the runs of which it is
    decided whether they can begin. What cannot be made holds up only those that need it: `failures` tells why, by id.
    """

    def __init__(
        self, specs: Sequence[RunSpec], executor: LocalExecutor, store: Store, tell: Callable[[str], None]
    ) -> None:
        self.failures: dict[str, Unprepared] = {}
        self.settled: set[str] = set()
        self._executor, self._tell = executor, tell
        self._folder = store.root / ".work" / "prepare"
        self._steps = self._plan(specs)
        self._step: _Step | None = None
        self._handle, self._said = 0, ""
        self._advance(None)

    @property
    def slots(self) -> int:
        """How many of the executor's slots it takes: one until everything is made."""
        return int(self._step is not None)

    def took(self, ended: Ended) -> bool:
        """Whether `ended` was a step of the preparation; the next one has then begun."""
        if self._step is None or ended.handle != self._handle:
            return False
        self.tick()
        self._advance(self._failure(self._step, ended.code) if ended.code else None)
        return True

    def tick(self) -> None:
        """Tell how far the step under way is."""
        text = self._status().get("progress", "") if self._step else ""
        if self._step and text and text != self._said:
            self._said = text
            self._tell(f"preparing {self._step.task.name}: {text}")

    def cancel(self) -> None:
        """Kill the step under way."""
        if self._step is not None:
            self._executor.cancel(self._handle)

    def _plan(self, specs: Sequence[RunSpec]) -> Generator[_Step, Unprepared | None, None]:
        """The steps, each decided on when those before it are done; what is sent back is why the last one failed."""
        made: dict[Path, Unprepared | None] = {}
        parts: set[Path] = set()
        of_pair: dict[tuple[str, str], list[RunSpec]] = {}
        for spec in specs:
            of_pair.setdefault((spec.task.name, spec.method.name), []).append(spec)
        pairs = [(registry.get("task", task), registry.get("method", method)) for task, method in of_pair]
        # What is wrong with a registration is said before anything begins.
        needed = [{"": bundle_folder(task), **source_folders(task, method)} for task, method in pairs]
        for (task, _), folders, runs in zip(pairs, needed, of_pair.values(), strict=True):
            missed: Unprepared | None = None
            for part, folder in folders.items():
                if missed is None and folder.path not in made:
                    whole = is_whole(folder) and not missing_data(data_of(task, part))
                    made[folder.path] = None if whole else (yield _Step(task, {"part": part}))
                missed = missed or made.get(folder.path)
            decoded = None if missed else decoded_folder(task)
            if decoded is not None:
                if decoded.path not in made:
                    used_too = {each.name: decoded_folder(each) for each, _ in pairs}
                    keep = [other.path for other in used_too.values() if other]
                    whole = decoded.rows >= rows_to_keep(decoded, keep)
                    step = _Step(task, {"part": DECODED, "keep": [str(path) for path in keep]})
                    made[decoded.path] = None if whole else (yield step)
                    used(decoded)
                    if decoded.rows < decoded.wanted.pictures and made[decoded.path] is None:
                        self._tell(f"{task.name}: {decoded.text()}")
                missed = made[decoded.path]
            for spec in runs:
                failure = missed
                for part, folder in frozen_folders(spec).items() if failure is None else ():
                    if folder.path not in made:
                        made[folder.path] = None
                        if not is_whole(folder):
                            step, along = _frozen_step(specs, folder, part)
                            # What that process has left out is not asked for a second time.
                            made |= dict.fromkeys(along, (yield step))
                    parts.add(folder.path)
                    failure = failure or made[folder.path]
                run_id = spec.run_id
                if failure is not None:
                    reason = f"Task '{task.name}' could not be prepared: {failure.reason}"
                    self.failures[run_id] = replace(failure, reason=reason)
                self.settled.add(run_id)
        prune(parts)

    def _advance(self, failure: Unprepared | None) -> None:
        while True:
            try:
                self._step = next(self._steps) if self._step is None else self._steps.send(failure)
            except StopIteration:
                self._step = None
                return
            self._said = ""
            self._tell(f"preparing {self._step.task.name}")
            try:
                request = write_request(self._step.task, self._folder, **self._step.about)
                request.with_suffix(".status").unlink(missing_ok=True)
            except OSError as error:
                failure = Unprepared("failed", f"cannot write to {self._folder}: {error.strerror}")
                continue
            self._handle = self._executor.call("prepare", request, self._log(self._step), self._step.gpu)
            return

    def _failure(self, step: _Step, code: int) -> Unprepared:
        said = self._status()
        if "error" in said:
            return Unprepared("oom" if said["status"] == "oom" else "failed", said["error"])
        how = f"was ended by signal {-code}" if code < 0 else f"left with exit code {code}"
        hint = ", as a system does when memory runs out" if -code == signal.SIGKILL else ""
        return Unprepared("failed", f"its process {how}{hint} (log: {self._log(step)})")

    def _status(self) -> dict[str, str]:
        """What the process of the step has left: `progress`, or `error` and `status`."""
        answer: dict[str, str] = {}
        if self._step is not None:
            with contextlib.suppress(OSError, ValueError):
                answer = json.loads((self._folder / f"{self._step.task.name}.status").read_text())
        return answer

    def _log(self, step: _Step) -> Path:
        return self._folder / f"{step.task.name}.log"


def prepare(specs: Sequence[RunSpec], executor: LocalExecutor, store: Store, tell: Callable[[str], None]) -> None:
    """Make all that `specs` need before anything runs; raises `SelfbenchError` with the reason of the first failure."""
    preparation = Preparation(specs, executor, store, tell)
    while preparation.slots:
        for ended in executor.poll(_POLL_SECONDS):
            preparation.took(ended)
        preparation.tick()
    for failure in preparation.failures.values():
        raise SelfbenchError(failure.reason)


def warm_modules(specs: Sequence[RunSpec]) -> tuple[str, ...]:
    """The modules of this package's tasks among `specs`, and what the loop of their protocol imports late.

    What others wrote is never imported into the server.
    """
    tasks = [registry.get("task", name) for name in dict.fromkeys(spec.task.name for spec in specs)]
    modules = [task.module for task in tasks if task.module and task.module.startswith("selfbench.tasks.")]
    late = [name for task in tasks for name in _LATE.get(task.protocol, ())]
    return tuple(dict.fromkeys([*modules, *late]))
