"""Pictures of WILDS that are kept decoded: registrations, and runs that come out the same bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.prepare.decoded import DecodedFolder, fill, read_decoded
from selfbench.suite.prepare.decoded_option import Decoded, declared
from selfbench.tasks.wilds.task import WildsTask

KEEPING = [entry for entry in registry.entries("task").values() if entry.options["decoded"] and entry.module]
NAMES = ["camelyon17", "iwildcam", "fmow", "rxrx1", "globalwheat", "poverty"]
Bundles = Callable[[str], BundleFolder]


@pytest.mark.parametrize("entry", KEEPING, ids=lambda entry: entry.name)
def test_registrations_say_what_the_classes_make(entry: registry.Entry) -> None:
    cls, wanted = entry.load(), declared(entry)
    assert wanted is not None
    assert wanted.shape[1:] == (cls.side, cls.side)
    assert wanted.dtype == ("float32" if entry.name == "wilds-poverty" else "uint8")
    if sizes := getattr(cls, "sizes", ()):
        assert wanted.pictures == sum(sizes)


def test_all_tasks_that_read_picture_files_at_each_access_are_registered() -> None:
    assert {f"wilds-{name}" for name in NAMES} <= {entry.name for entry in KEEPING}
    assert len(KEEPING) == len(NAMES) + 37


def kept(task: Any, bundle: BundleFolder, path: Path, share: float) -> SimpleNamespace:
    """A part of the public arrays of a run: the first `share` of the pictures, decoded."""
    public = bundle.public()
    like = task.decoded(public, np.arange(1))
    folder = DecodedFolder(path, Decoded(bundle.facts["pictures"], like.shape[1:], str(like.dtype)))
    fill(folder, lambda rows: task.decoded(public, rows), int(share * folder.wanted.pictures))
    return SimpleNamespace(public=lambda: read_decoded(path))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_the_same_whether_they_are_kept_or_not(
    at_home: Path, bundles: Bundles, miniature: Callable[[str], WildsTask], tmp_path: Path, name: str
) -> None:
    task, bundle = miniature(name), bundles(name)
    public, pictures = bundle.public(), bundle.facts["pictures"]
    assert pictures == len(public["paths"])
    rows = np.random.default_rng(0).permutation(pictures)[:40]
    plain = task.inputs(public, rows)
    assert len(plain.unique()) > 30
    for share in (0.0, 0.5, 1.0):
        part = kept(task, bundle, tmp_path / str(share), share)
        assert torch.equal(task.inputs(public | part.public(), rows), plain)


@pytest.mark.parametrize("name", ["fmow"])
def test_a_run_comes_out_the_same(
    at_home: Path,
    bundles: Bundles,
    miniature: Callable[[str], WildsTask],
    play: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Random views are made after the cache; where all pictures are kept, none is decoded in the run."""
    task, bundle = miniature(name), bundles(name)
    parts = {share: kept(task, bundle, tmp_path / str(share), share) for share in (0.4, 1.0)}

    def run(*source: Any) -> Any:
        return play(Supervised(augment="strong"), task, bundle, limit=300.0, source=source)

    plain, some = run(), run(parts[0.4])
    monkeypatch.setattr(type(task), "decoded", None)
    whole = run(parts[1.0])
    assert plain.predictions_sha256 == some.predictions_sha256 == whole.predictions_sha256
    assert plain.metrics == whole.metrics
