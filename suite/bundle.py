"""Bundles: the data of a task, decoded once into memory-mapped arrays, inputs apart from labels.

<cache>/bundles/<name>-<key>/
    public/*.npy        what a method's process may map
    private/*.npy       labels: opened only by the scorer
    model.safetensors   the source model, where the task has one
    bundle.json         facts, and the sha256 of every file
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import sha256_file, sync_folder, write_atomic
from .source_files import imported_files
from .spec import canonical

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]


@dataclass
class Bundle:
    """What a task's `build` returns.

    `public`: arrays by name that methods may see, or paths of .npy files too large for memory, which are moved into the
    bundle; `private`: labels and whatever else only the scorer may see; `model`: the state dict of the source model, or
    None; `facts`: JSON-able facts such as the measured clean error.
    """

    public: Mapping[str, Array | Path]
    private: Mapping[str, Array]
    model: Mapping[str, torch.Tensor] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleFolder:
    """A bundle on disk."""

    path: Path

    @property
    def exists(self) -> bool:
        return (self.path / "bundle.json").is_file()

    def manifest(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.path / "bundle.json").read_text())
        return data

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.manifest()["facts"]
        return facts

    @property
    def sha256(self) -> str:
        """The digest of all digests: two bundles with equal content have the same."""
        return hashlib.sha256(canonical(self.manifest()["files"])).hexdigest()

    def public(self) -> dict[str, Array]:
        return self._arrays("public")

    def private(self) -> dict[str, Array]:
        return self._arrays("private")

    def model(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path / "model.safetensors")

    def damaged(self) -> list[str]:
        """The files whose content is not what was built."""
        files = self.manifest()["files"]
        return [
            name
            for name, digest in files.items()
            if not (self.path / name).is_file() or sha256_file(self.path / name) != digest
        ]

    def _arrays(self, part: str) -> dict[str, Array]:
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted((self.path / part).glob("*.npy"))}


def write_bundle(path: Path, bundle: Bundle) -> BundleFolder:
    """Write `bundle` beside `path` and rename it into place: half a bundle is never seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for part, arrays in (("public", bundle.public), ("private", bundle.private)):
            (temporary / part).mkdir()
            for name, array in arrays.items():
                target = temporary / part / f"{name}.npy"
                if isinstance(array, Path):
                    shutil.move(array, target)
                else:
                    np.save(target, np.ascontiguousarray(array), allow_pickle=False)
        if bundle.model is not None:
            from safetensors.torch import save_file

            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.items()}
            save_file(tensors, temporary / "model.safetensors")
        written = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
        files = {str(file.relative_to(temporary)): sha256_file(file) for file in written}
        manifest = {"facts": dict(bundle.facts), "files": files}
        write_atomic(temporary / "bundle.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return BundleFolder(path)


def source_key(file: Path, package: Path) -> str:
    """The digest of a task's source: its own file and, inside the package, what it imports of `tasks` and `pretrain`.

    What else it imports (protocols, files) moves no byte of a bundle.
    """
    file, package = file.resolve(), package.resolve()

    def counts(module: Path) -> bool:
        return package / "tasks" in module.parents or module == package / "suite" / "pretrain.py"

    digest = hashlib.sha256()
    for source in sorted(imported_files(file, counts) if package in file.parents else {file}):
        digest.update(os.fsencode(source.name) + b"\0" + source.read_bytes())
    return digest.hexdigest()
