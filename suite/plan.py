"""What is there and what is missing: the state of every run of a matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import registry
from .errors import RecordError
from .files import locked
from .prepare.bundles import bundle_folder, data_sets, source_folders
from .prepare.decoded import decoded_folder, rows_to_keep
from .prepare.decoded_option import declared, limit_bytes
from .spec import RunSpec
from .store import Store

if TYPE_CHECKING:
    from .data import Data


@dataclass(frozen=True)
class State:
    """One run: `state` is ok, failed, timeout, oom, broken (file), running, or missing; `detail` says why.

    `unprepared`: its record says that it never began, because its task could not be prepared.
    """

    spec: RunSpec
    state: str
    detail: str = ""
    unprepared: bool = False

    @property
    def to_do(self) -> bool:
        """Whether `selfbench run` would run it."""
        return self.unprepared or self.state in ("missing", "broken")


def states(specs: Iterable[RunSpec], store: Store) -> list[State]:
    return [_state(spec, store) for spec in specs]


def _state(spec: RunSpec, store: Store) -> State:
    try:
        record = store.read(spec)
    except RecordError as error:
        return State(spec, "broken", str(error))
    if record is not None and record.started:
        return State(spec, record.status, record.reason)
    claim = store.work(spec) / "claim"
    if claim.exists():
        with locked(claim, wait=False) as free:
            if not free:
                return State(spec, "running")
    return State(spec, record.status, record.reason, unprepared=True) if record else State(spec, "missing")


def matrix(rows: Sequence[State]) -> list[tuple[str, str, Counter[str]]]:
    """(task, method, state -> number of seeds) in the order of the suite."""
    cells: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        cells.setdefault((row.spec.task.name, row.spec.method.name), Counter())[row.state] += 1
    return [(task, method, counts) for (task, method), counts in cells.items()]


@dataclass(frozen=True)
class Need:
    """A data set, bundle or cache that has to be made before the runs; `size` in bytes where known.

    `kind`: "fetch", "put" (a data set that no command fetches), "build" or "decode".
    """

    kind: str
    name: str
    size: int | None
    note: str = ""


def needs(specs: Iterable[RunSpec]) -> list[Need]:
    """What has to be fetched or built before these runs can start."""
    from .data import Data
    from .places import data_folder

    data = Data(data_folder())
    names = dict.fromkeys((spec.task.name, spec.method.name) for spec in specs)
    pairs = [(registry.get("task", task), registry.get("method", method)) for task, method in names]
    found = [_to_bring(data, name) for name in data_sets(pairs) if not data.present(name)]
    bundles = {
        str(folder.path): f"{task.name} ({part})" if part else task.name
        for task, method in pairs
        for part, folder in {"": bundle_folder(task), **source_folders(task, method)}.items()
        if not folder.exists
    }
    found += [Need("build", name, None) for name in bundles.values()]
    return found + list(_to_decode({task.options["bundle"] or task.name: task for task, _ in pairs}))


def _to_bring(data: Data, name: str) -> Need:
    """A data set that is not here: fetched by a command, or put there by hand, and then from where."""
    described = data.describe(name)
    if described.kind != "folder":
        return Need("fetch", name, described.bytes_to_fetch)
    where = f"into {data.folder(name)}: {described.by_hand} {described.homepage}"
    return Need("put", name, described.bytes_on_disk or None, where)


def _to_decode(tasks: Mapping[str, registry.Entry]) -> Iterator[Need]:
    """The pictures that would be decoded and kept, by the names of the tasks' bundles."""
    for name, task in tasks.items():
        folder = decoded_folder(task)
        wanted = folder.wanted if folder else declared(task)
        if wanted is None or not limit_bytes():
            continue
        here = folder.rows * wanted.row if folder else 0
        kept = rows_to_keep(folder) * wanted.row if folder else int(min(wanted.size, limit_bytes()))
        if kept > here:
            rest = "" if kept >= wanted.size else f"of {wanted.size / 1e9:.0f} GB; the others at each access"
            yield Need("decode", name, kept - here, rest)
