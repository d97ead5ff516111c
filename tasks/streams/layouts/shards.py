"""Tar shards of samples, as CCC is published: `<key>.input.jpg` and `<key>.output.cls` one after the other."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from ....suite.errors import DataMissing


def samples(folder: Path, image: str = "input.jpg", label: str = "output.cls") -> Iterator[tuple[str, bytes, int]]:
    """Name, image file and class of every sample in `folder/*.tar`, shard by shard and in the order of each.

    Raises `DataMissing` naming a shard that is torn, or a sample that lacks a part.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise DataMissing(f"{folder} holds no shards (*.tar). Get them again and put them there.")
    for shard in shards:
        yield from _read(shard, image, label)


def _read(shard: Path, image: str, label: str) -> Iterator[tuple[str, bytes, int]]:
    parts: dict[str, bytes] = {}
    current = ""
    try:
        with tarfile.open(shard, "r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, _, part = member.name.partition(".")
                if parts and key != current:
                    yield _sample(shard, current, parts, image, label)
                    parts = {}
                current = key
                file = archive.extractfile(member)
                parts[part] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataMissing(f"{shard} is torn: {error}. Get the shard again.") from None
    if parts:
        yield _sample(shard, current, parts, image, label)


def _sample(shard: Path, key: str, parts: dict[str, bytes], image: str, label: str) -> tuple[str, bytes, int]:
    if image not in parts or label not in parts:
        raise DataMissing(
            f"{shard}: sample '{key}' has {sorted(parts)}, expected {image} and {label}. Get the shard again."
        )
    try:
        return f"{shard}, {key}", parts[image], int(parts[label])
    except ValueError:
        raise DataMissing(f"{shard}: sample '{key}' has no class number. Get the shard again.") from None
