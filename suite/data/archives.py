"""Archives (zip or tar) of data sets: unpacked whole, or opened at one file."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import DataMissing

_CHUNK = 1 << 20


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip or tar into the folder `target`; raises `DataMissing` naming the file where it cannot be read."""
    target.mkdir(exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(target)
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(target, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataMissing(f"{archive} cannot be unpacked: {error}. Remove it and fetch again.") from error


def merge(source: Path, target: Path) -> None:
    """Move a file or folder to `target`; what lies in a folder of that name already and is not replaced stays."""
    if source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            merge(entry, target / entry.name)
    else:
        source.replace(target)


@contextlib.contextmanager
def opened(archive: Path, inside: tuple[str, ...], temporary: Path) -> Iterator[IO[bytes]]:
    """Open a file in an archive (zip or tar), where an inner step may be an archive itself."""
    first, *rest = inside
    with contextlib.ExitStack() as stack:
        try:
            source: IO[bytes] | None
            if zipfile.is_zipfile(archive):
                source = stack.enter_context(zipfile.ZipFile(archive)).open(first)
            else:
                source = stack.enter_context(tarfile.open(archive)).extractfile(first)
        except (KeyError, tarfile.TarError) as error:
            raise DataMissing(f"{archive.name} holds no file '{first}': {error}.") from error
        if source is None:
            raise DataMissing(f"'{first}' in {archive.name} is not a file.")
        with source:
            if not rest:
                yield source
                return
            inner = temporary / f"inner-{len(rest)}"
            with inner.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
            with opened(inner, tuple(rest), temporary) as deeper:
                yield deeper
