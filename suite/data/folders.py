"""Data sets on this machine: where they lie, whether they are whole, and how they are fetched.

    <data root>/<data set>/<member>         a file that tasks open
    <data root>/<data set>/<artefact>       optional: the package's file, placed by hand on a machine without network
    <data root>/<data set>/<download>       optional: an archive of a web source, placed by hand

A folder in the data set's own published layout, placed or linked at <data root>/<data set>, serves as well as a
fetched one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import shutil
import tempfile
from pathlib import Path

from ..errors import DataMissing, UsageError, did_you_mean
from ..files import locked, sha256_file
from .delivery import Delivery
from .sets import DESCRIPTIONS, Dataset, Member, Progress, read_descriptions


class Data:
    """The data sets below one folder."""

    def __init__(self, root: Path, descriptions: Path = DESCRIPTIONS) -> None:
        self.root = root
        self._datasets = read_descriptions(descriptions)

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
                remedy = functools.partial(self._remedy, dataset)
                Delivery(dataset, folder, temporary, progress or (lambda done, total: None), remedy).bring(missing)
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
