"""Image files in folders: classes (as of ImageNet), domains of classes (PACS, VLCS), lists (DomainNet-126)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....suite.bundle import Array
from ....suite.errors import DataMissing
from .decode import SUFFIXES, decode_file

THREADS = 8


@dataclass(frozen=True)
class Files:
    """Image files and their classes (N,), as numbers into `classes`."""

    paths: tuple[Path, ...]
    labels: Array
    classes: tuple[str, ...]


def class_folders(folder: Path, classes: Sequence[str] | None = None, expected: int | None = None) -> Files:
    """The files in `folder/<class>/`, sorted by class and name; `classes` are all its subfolders unless they are given.

    Raises `DataMissing` naming what is missing, and where there are not `expected` files.
    """
    found = subfolders(folder)
    wanted = tuple(classes) if classes is not None else found
    absent = sorted(set(wanted) - set(found))
    if absent:
        raise DataMissing(f"{folder} lacks {_several(absent, 'class folder')}. Get the archive again.")
    paths: list[Path] = []
    counts = []
    for name in wanted:
        inside = image_files(folder / name)
        paths += inside
        counts.append(len(inside))
    if not paths or (expected is not None and len(paths) != expected):
        raise DataMissing(
            f"{folder} holds {len(paths):,} images, expected {expected or 'some'}. Get the archive again."
        )
    return Files(tuple(paths), np.repeat(np.arange(len(wanted)), counts), wanted)


def listed(folder: Path, names: Sequence[str], classes: Sequence[str]) -> Files:
    """The files `folder/<class>/<name>` that `names` lists as `<class>/<name>`, in its order; all must be there."""
    number = {name: index for index, name in enumerate(classes)}
    paths = tuple(folder / name for name in names)
    absent = sorted(str(path) for path in paths if not path.is_file())
    if absent:
        raise DataMissing(f"{_several(absent, 'listed file')} not there. Get the archive again.")
    return Files(paths, np.array([number[name.split("/")[0]] for name in names]), tuple(classes))


def image_list(root: Path, file: Path, n_classes: int) -> Files:
    """A list of lines `<path below root> <class number>`, as DomainNet-126 and VISDA-C give it."""
    try:
        lines = [line.rsplit(maxsplit=1) for line in file.read_text().splitlines() if line.strip()]
        labels = np.array([int(number) for _, number in lines])
    except (OSError, ValueError) as error:
        raise DataMissing(f"{file} is no list of lines `path class`: {error}. Get the file again.") from None
    if not len(labels) or labels.min() < 0 or labels.max() >= n_classes:
        raise DataMissing(f"{file}: classes must lie in 0 to {n_classes - 1}. Get the file again.")
    names = [""] * n_classes
    for name, number in lines:
        names[int(number)] = Path(name).parent.name
    return Files(tuple(root / name for name, _ in lines), labels, tuple(names))


def domain_folders(root: Path, domains: Sequence[str]) -> dict[str, Files]:
    """The files in `root/<domain>/<class>/` by domain; all domains must have the same classes."""
    found = {domain: class_folders(root / domain) for domain in domains}
    first = found[domains[0]].classes
    for domain, files in found.items():
        if files.classes != first:
            different = sorted(set(files.classes) ^ set(first))
            raise DataMissing(
                f"{root / domain} and {root / domains[0]} do not have the same classes: "
                f"{_several(different, 'folder')} in one alone. Get the archives of both again, or remove what is not "
                "theirs."
            )
    return found


def subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in `folder`, sorted; raises `DataMissing` where it is not there or has none."""
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())) if folder.is_dir() else ()
    if not names:
        what = "has no folders in it" if folder.is_dir() else "is missing"
        raise DataMissing(f"{folder} {what}. Unpack the published archive there again.")
    return names


def image_files(folder: Path) -> list[Path]:
    """The images in `folder`, sorted by name."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
    return [folder / name for name in names]


def decode_all(
    paths: Sequence[Path],
    out: Array,
    side: int,
    resize: int | Sequence[int] | None = None,
    tell: Callable[[int], None] = lambda done: None,
    bicubic: bool = False,
) -> None:
    """Decode every file into `out`, uint8 (N, 3, side, side), which may be mapped; `tell` hears how many are done."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), 512):
            part = paths[start : start + 512]
            decoded = pool.map(lambda path: decode_file(path, side, resize, bicubic), part)
            for row, pixels in enumerate(decoded, start):
                out[row] = pixels
            tell(start + len(part))


def _several(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{more})"
