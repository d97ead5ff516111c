"""What `tasks/datasets.toml` says of data sets: members, sizes, digests, and where they come from."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ..errors import UsageError

DESCRIPTIONS = Path(__file__).resolve().parents[2] / "tasks" / "datasets.toml"
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do."""


@dataclass(frozen=True)
class Member:
    """What tasks open. `inside`: its path in the source, one step per archive; size and digest as published.

    A member without a digest is known by its size, one without a size (such as a folder of images) by being there.
    """

    name: str
    inside: tuple[str, ...] = ()
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Download:
    """A file on the web: an archive that is unpacked into the data set's folder, or a member itself.

    `digest` is "sha256:..." or "md5:...", as its publisher states it.
    """

    name: str
    url: str
    size: int
    digest: str


@dataclass(frozen=True)
class Dataset:
    """One description; the keys are explained at the top of `tasks/datasets.toml`."""

    name: str
    title: str
    licence: str
    homepage: str
    citation: str
    kind: Literal["index", "hub", "rows", "web", "folder", "library"]
    by_hand: str
    members: tuple[Member, ...]
    package: str = ""
    artefact: str = ""
    size: int = 0
    sha256: str = ""
    repository: str = ""
    repository_type: str = "dataset"
    revision: str = ""
    config: str | None = None
    folder: str = ""
    downloads: tuple[Download, ...] = ()

    @property
    def bytes_on_disk(self) -> int:
        members = sum(member.size for member in self.members)
        return max(members, self.size) if self.kind in ("web", "folder", "hub", "rows") else members

    @property
    def bytes_to_fetch(self) -> int:
        """What `fetch` moves over the network."""
        downloads = sum(download.size for download in self.downloads)
        whole = self.bytes_on_disk
        return {"index": self.size, "hub": whole, "rows": whole, "web": downloads}.get(self.kind, 0)

    @property
    def fingerprint(self) -> str:
        """The digest of all members' names and digests: equal fingerprints mean equal data."""
        lines = sorted(f"{member.name} {member.sha256}\n" for member in self.members)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_descriptions(path: Path) -> Mapping[str, Dataset]:
    """The descriptions in a TOML file; raises `UsageError` where one is malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The data sets' description {path} cannot be read: {error}.") from None
    return _parse(text, path)


@functools.lru_cache(maxsize=4)
def _parse(text: str, path: Path) -> Mapping[str, Dataset]:
    """Kept, for every run asks for the fingerprints of its data, and parsing takes a fiftieth of a second."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The data sets' description {path} cannot be read: {error}.") from None
    found = {}
    for name, table in tables.items():
        try:
            found[name] = _dataset(name, dict(table))
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path}: data set '{name}': missing or unknown key: {error}.") from None
    return MappingProxyType(found)


def _dataset(name: str, table: dict[str, Any]) -> Dataset:
    members = tuple(Member(**{**item, "inside": tuple(item.get("inside", ()))}) for item in table.pop("members"))
    downloads = tuple(Download(**item) for item in table.pop("downloads", ()))
    return Dataset(name=name, members=members, downloads=downloads, **table)
