"""How data sets come onto a machine: from a package index, a hub, a hub's rows or the web; only verified ones stay."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import DataMissing, UsageError
from ..files import sha256_file, sync_folder
from .archives import merge, opened, unpack
from .package_files import download_artefact
from .sets import Dataset, Download, Member, Progress

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Delivery:
    """One data set on its way to `folder`; `temporary` is on the same disk, `remedy` says how else to get a member."""

    dataset: Dataset
    folder: Path
    temporary: Path
    progress: Progress
    remedy: Callable[[Member], str]

    def bring(self, missing: Sequence[Member]) -> None:
        """Raises `DataMissing` where a member cannot be had, `UsageError` where a package for it is not installed."""
        if self.dataset.kind == "web":
            self._from_web()
        else:
            ways = {"index": self._from_index, "hub": self._from_hub, "rows": self._from_rows}
            ways[self.dataset.kind](missing)

    def _from_index(self, missing: Sequence[Member]) -> None:
        artefact = self.folder / self.dataset.artefact
        if not artefact.is_file():
            artefact = download_artefact(self.dataset, self.temporary, self.progress, self.remedy(missing[0]))
        if sha256_file(artefact) != self.dataset.sha256:
            raise DataMissing(f"{artefact} does not have the sha256 {self.dataset.sha256}. Remove it and fetch again.")
        for member in missing:
            with opened(artefact, member.inside, self.temporary) as source:
                self._place(source, member)

    def _from_hub(self, missing: Sequence[Member]) -> None:
        from huggingface_hub import hf_hub_download

        total = sum(member.size for member in missing)
        done = 0
        for member in missing:
            try:
                got = hf_hub_download(
                    self.dataset.repository,
                    member.inside[0],
                    repo_type=self.dataset.repository_type,
                    revision=self.dataset.revision,
                    local_dir=self.temporary,
                )
            except Exception as error:  # every way in which a network or a hub can fail
                raise DataMissing(
                    f"Could not fetch '{member.inside[0]}' of {self.dataset.repository}: {error}\n{self.remedy(member)}"
                ) from error
            with Path(got).open("rb") as source:
                self._place(source, member)
            done += member.size
            self.progress(done, total)

    def _from_rows(self, missing: Sequence[Member]) -> None:
        try:
            import datasets
        except ModuleNotFoundError:
            raise UsageError(
                f"Data set '{self.dataset.name}' comes through the package datasets: "
                f"type `pip install 'selfbench[text]'`.\n{self.remedy(missing[0])}"
            ) from None
        for member in missing:
            part = self.temporary / member.name
            part.mkdir()
            try:
                rows = datasets.load_dataset(
                    self.dataset.repository, self.dataset.config, revision=self.dataset.revision, split=member.inside[0]
                )
                rows.to_parquet(part / "rows.parquet")
            except Exception as error:  # every way in which a network or a hub can fail
                raise DataMissing(
                    f"Could not fetch the part '{member.inside[0]}' of {self.dataset.repository}: {error}\n"
                    f"{self.remedy(member)}"
                ) from error
            part.replace(self.folder / member.name)

    def _from_web(self) -> None:
        """Bring and unpack every download that has left something missing; archives placed by hand are kept."""
        done, total = 0, self.dataset.bytes_to_fetch
        for item in self.dataset.downloads:
            path = self.folder / item.name
            mine = not path.exists()
            if mine:
                from .web import download

                part = self.folder / f"{item.name}.part"
                try:
                    download(item.url, part, item.size, functools.partial(self._tell, done, total))
                except OSError as error:
                    raise DataMissing(
                        f"Could not fetch {item.url}: {error}\n"
                        f"What has come lies in {part}; fetching again goes on from there.\n"
                        f"{self.remedy(self.dataset.members[0])}"
                    ) from error
                part.replace(path)
            self._check(item, path)
            if item.name not in {member.name for member in self.dataset.members}:
                unpack(path, self.temporary / "unpacked")
                for entry in sorted((self.temporary / "unpacked").iterdir()):
                    merge(entry, self.folder / entry.name)
                if mine:
                    path.unlink()
            done += item.size

    def _tell(self, before: int, total: int, done: int) -> None:
        self.progress(before + done, total)

    def _check(self, item: Download, path: Path) -> None:
        size = path.stat().st_size
        if size < item.size:
            raise DataMissing(
                f"{path} is cut off: it has {size:,} of {item.size:,} bytes. Type `curl -L -C - -o {path} {item.url}`, "
                f"which goes on where it stopped, then `selfbench data fetch {self.dataset.name}`."
            )
        algorithm, _, expected = item.digest.partition(":")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if size != item.size or found != expected:
            raise DataMissing(
                f"{path} is not the published file: {size:,} bytes with {algorithm} {found}, expected {item.size:,} "
                f"with {expected}. Remove it and type `selfbench data fetch {self.dataset.name}`."
            )

    def _place(self, source: IO[bytes], member: Member) -> None:
        """Copy a verified member beside its place, sync, and rename it there."""
        target = self.folder / member.name
        part = self.temporary / "member"
        digest = hashlib.sha256()
        size = 0
        with part.open("wb") as file:
            while (not member.size or size <= member.size) and (chunk := source.read(_CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        # Of a file of a hub's revision the publisher may state neither.
        if (size, digest.hexdigest()) != (member.size or size, member.sha256 or digest.hexdigest()):
            raise DataMissing(
                f"'{member.name}' of data set '{self.dataset.name}' is not the published file: "
                f"expected {member.size:,} bytes with sha256 {member.sha256}. Nothing was kept."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        sync_folder(target.parent)
