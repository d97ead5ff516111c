"""Preparation: the data sets and bundles that runs need, fetched and built once, before the runs.

A task whose registration names `source` keeps the source's own images apart, in folders beside its bundle: `source`
has the images and their classes, `posterior` the Gaussian over the weights that is sampled on them. They are made only
where a method asks for them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable

from .. import registry
from ..bundle import BundleFolder, source_key, write_bundle
from ..errors import DataMissing
from ..files import locked
from ..needs import SOURCE_PARTS
from ..places import cache_folder, data_folder
from ..spec import canonical

UNASKED = 1_000_000_000
"""Bytes that a run may download without being asked to."""


def bundle_folder(task: registry.Entry) -> BundleFolder:
    """Where the bundle of `task` lies or will lie: keyed by its name, the source of its room, and its data sets."""
    return _folder(task.options["bundle"] or task.name, task, task.options["data"])


def _folder(name: str, task: registry.Entry, data_sets: Iterable[str]) -> BundleFolder:
    from ..data import Data

    data = Data(data_folder())
    contents = {item: data.describe(item).fingerprint for item in data_sets}
    key = hashlib.sha256(canonical([name, source_key(task.file, registry.PACKAGE), contents])).hexdigest()[:12]
    return BundleFolder(cache_folder() / "bundles" / f"{name}-{key}")


def source_parts(task: registry.Entry, method: registry.Entry) -> tuple[str, ...]:
    """The parts that `task` keeps apart from its bundle and `method` needs; usually none."""
    if task.options.get("source") is None:
        return ()
    return tuple(dict.fromkeys(SOURCE_PARTS[need] for need in method.options["needs"] if need in SOURCE_PARTS))


def source_folder(task: registry.Entry, part: str) -> BundleFolder:
    """Where one of `source_parts` lies or will lie."""
    return _folder(f"{task.options['source']['bundle']}-{part}", task, task.options["source"]["data"])


def source_folders(task: registry.Entry, method: registry.Entry) -> dict[str, BundleFolder]:
    """part -> its folder, for each of `source_parts`."""
    return {part: source_folder(task, part) for part in source_parts(task, method)}


def data_of(task: registry.Entry, part: str = "") -> list[str]:
    """The data sets of the bundle of `task`, or of one of `source_parts` and what it stands on."""
    return list(dict.fromkeys((*task.options["data"], *(task.options["source"]["data"] if part else ()))))


def data_sets(pairs: Iterable[tuple[registry.Entry, registry.Entry]]) -> list[str]:
    """The data sets that these pairs of a task and a method need, each once."""
    wanted = [data_of(task, part) for task, method in pairs for part in ("", *source_parts(task, method))]
    return list(dict.fromkeys(name for names in wanted for name in names))


def missing_data(names: Iterable[str]) -> list[str]:
    """Those of the data sets `names` that are not on this machine."""
    from ..data import Data

    data = Data(data_folder())
    return [name for name in names if not data.present(name)]


def fetch_missing(names: Iterable[str], progress: Callable[[str], None]) -> None:
    """Fetch the data sets `names` that are not here.

    Raises `DataMissing` for those by hand, and for those larger than `UNASKED`, which are fetched by command alone.
    """
    from ..data import Data

    data = Data(data_folder())
    for name in missing_data(names):
        size = data.describe(name).bytes_to_fetch
        if size > UNASKED:
            raise DataMissing(f"Data set '{name}' is not on this machine.\n{data.how_to_get(name)}")
        if size:
            progress(f"fetching {name} ({size / 1e6:.0f} MB)")
        data.fetch(name)


def is_whole(folder: BundleFolder) -> bool:
    """Whether a bundle is there with the content that was built."""
    return folder.exists and not folder.damaged()


def build(entry: registry.Entry, tell: Callable[[str], None] = lambda _: None, part: str = "") -> BundleFolder:
    """Build the bundle of a task, or a part of its source, unless it is whole; two builders of one wait for each other.

    What a part stands on is built first.
    """
    from ..data import Data
    from ..pretrain import check_gate

    folder = source_folder(entry, part) if part else bundle_folder(entry)
    below = [build(entry, tell, name) for name in ("", "source")] if part == "posterior" else []
    with locked(folder.path.parent / f".{folder.path.name}.lock"):
        if is_whole(folder):
            return folder
        if folder.path.exists():
            print(f"{folder.path} is damaged: building it again", file=sys.stderr)
            shutil.rmtree(folder.path)
        tell("building")
        started = time.perf_counter()
        task = entry.load()()
        task.tell = tell
        if part == "posterior":
            bundle = task.build_posterior(*below)
        else:
            bundle = task.build_source(Data(data_folder())) if part else task.build(Data(data_folder()))
        seconds = round(time.perf_counter() - started, 3)
        # What a cache has kept from an earlier preparation was paid for then.
        paid = max(seconds, float(bundle.facts.get("encode_seconds", 0.0)))
        facts = dict(bundle.facts) | {"build_seconds": seconds, "preparation_seconds": paid}
        bundle.facts = facts
        if not part:
            check_gate(task, facts)
        return write_bundle(folder.path, bundle)
