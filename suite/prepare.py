"""Preparation: the data sets and bundles that runs need, fetched and built once, before the runs."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable

from . import registry
from .bundle import BundleFolder, source_key, write_bundle
from .errors import DataMissing
from .files import locked
from .places import cache_folder, data_folder
from .spec import canonical

UNASKED = 1_000_000_000
"""Bytes that a run may download without being asked to."""


def bundle_folder(task: registry.Entry) -> BundleFolder:
    """Where the bundle of `task` lies or will lie: keyed by its name, the source of its room, and its data sets."""
    from .data import Data

    name = task.options["bundle"] or task.name
    data = Data(data_folder())
    contents = {item: data.describe(item).fingerprint for item in task.options["data"]}
    key = hashlib.sha256(canonical([name, source_key(task.file, registry.PACKAGE), contents])).hexdigest()[:12]
    return BundleFolder(cache_folder() / "bundles" / f"{name}-{key}")


def fetch_missing(tasks: Iterable[registry.Entry], progress: Callable[[str], None]) -> None:
    """Fetch the data sets that `tasks` need and that are not here.

    Raises `DataMissing` for those by hand, and for those larger than `UNASKED`, which are fetched by command alone.
    """
    from .data import Data

    data = Data(data_folder())
    for name in dict.fromkeys(item for task in tasks for item in task.options["data"]):
        if not data.present(name):
            size = data.describe(name).bytes_to_fetch
            if size > UNASKED:
                raise DataMissing(f"Data set '{name}' is not on this machine.\n{data.how_to_get(name)}")
            if size:
                progress(f"fetching {name} ({size / 1e6:.0f} MB)")
            data.fetch(name)


def is_whole(folder: BundleFolder) -> bool:
    """Whether a bundle is there with the content that was built."""
    return folder.exists and not folder.damaged()


def build(entry: registry.Entry, tell: Callable[[str], None] = lambda _: None) -> BundleFolder:
    """Build the bundle of a task unless it is whole; two builders of one bundle wait for each other."""
    from .data import Data
    from .pretrain import check_gate

    folder = bundle_folder(entry)
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
        bundle = task.build(Data(data_folder()))
        seconds = round(time.perf_counter() - started, 3)
        # What a cache has kept from an earlier preparation was paid for then.
        paid = max(seconds, float(bundle.facts.get("encode_seconds", 0.0)))
        facts = dict(bundle.facts) | {"build_seconds": seconds, "preparation_seconds": paid}
        bundle.facts = facts
        check_gate(task, facts)
        return write_bundle(folder.path, bundle)
