"""Every mended thing is broken without its mending, right with it, and as it was afterwards."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.suite.errors import UsageError
from selfbench.tasks.wilds import compat


@pytest.fixture(autouse=True)
def quietly(miniatures: Any) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(root: Path, name: str, unlabeled: bool = False) -> Any:
    wilds = importlib.import_module("wilds")
    return wilds.get_dataset(name, root_dir=str(root / "wilds"), download=False, unlabeled=unlabeled)


@pytest.mark.parametrize("name", ["civilcomments", "rxrx1"])
def test_sets_that_pandas_3_refuses_load(wilds_data: Path, name: str) -> None:
    with compat.usable(False):
        assert len(load(wilds_data, name)) > 50
    if int(importlib.import_module("pandas").__version__.split(".")[0]) >= 3:
        with pytest.raises((TypeError, ValueError)):
            load(wilds_data, name)


def test_a_table_that_is_written_into_by_rxrx1_is_right(wilds_data: Path) -> None:
    with compat.usable():
        dataset = load(wilds_data, "rxrx1")
    table = importlib.import_module("pandas").read_csv(wilds_data / "wilds" / "rxrx1_v1.0" / "metadata.csv")
    codes = table["dataset"].map({"train": 0, "val": 1, "test": 2}).to_numpy().copy()
    codes[(table["dataset"] == "train") & (table["site"] == 2)] = 3
    np.testing.assert_array_equal(dataset.split_array, codes)


def test_the_unlabelled_patches_of_camelyon17_assert_their_published_number(wilds_data: Path) -> None:
    with compat.usable(published_counts=False):
        assert len(load(wilds_data, "camelyon17", unlabeled=True)) == 50
    with compat.usable(), pytest.raises(AssertionError):
        load(wilds_data, "camelyon17", unlabeled=True)


def test_words_of_globalwheats_tables_are_numbers_and_no_code(miniatures: Any, tmp_path: Path) -> None:
    """Whoever loads: the package evaluates them where it is not mended."""
    miniatures.globalwheat(tmp_path / "wilds")
    path, mark = tmp_path / "wilds" / "globalwheat_v1.1" / "official_val.csv", tmp_path / "evaluated"
    table = importlib.import_module("pandas").read_csv(path)
    table.loc[2, "BoxesString"] = f"open('{mark}','w').write('1') 2 3 4"
    table.to_csv(path, index=False)
    with compat.usable():
        load(tmp_path, "globalwheat")
    assert not mark.exists()
    load(tmp_path, "globalwheat")
    assert mark.exists()


def test_means_by_group_need_no_torch_scatter() -> None:
    generator = torch.Generator().manual_seed(0)
    values, groups = torch.rand(200, generator=generator), torch.randint(0, 7, (200,), generator=generator)
    groups[groups == 3] = 4
    means, counts = compat.mean_by_group(values, groups, 9)
    for group in range(9):
        inside = values[groups == group]
        assert counts[group] == len(inside)
        assert means[group] == (pytest.approx(float(inside.mean()), abs=1e-6) if len(inside) else 0.0)
    hits, _ = compat.mean_by_group(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]), 2)
    assert hits.tolist() == [0.5, 1.0]


def test_names_are_as_they_were_outside(wilds_data: Path) -> None:
    holders = [importlib.import_module(f"wilds.common.{name}") for name in compat._HOLDERS]
    sets = [importlib.import_module(f"wilds.datasets.{name}_dataset") for name in ("civilcomments", "rxrx1")]
    unlabeled = importlib.import_module("wilds.datasets.unlabeled.camelyon17_unlabeled_dataset")

    def names() -> list[Any]:
        return [
            *(module.avg_over_groups for module in holders),
            *(module.pd for module in sets),
            unlabeled.Camelyon17UnlabeledDataset,
        ]

    before = names()
    with compat.usable(published_counts=False):
        assert not any(mine is theirs for mine, theirs in zip(before, names(), strict=True))
    assert all(mine is theirs for mine, theirs in zip(before, names(), strict=True))


def test_importing_asks_no_index_and_leaves_the_environment_alone() -> None:
    code = """
import os, sys, threading
from selfbench.tasks.wilds import compat
before = dict(os.environ)
with compat.usable() as wilds:
    assert wilds.version.check_outdated is None
for name in compat._HOLDERS:
    assert sys.modules["wilds.common." + name].avg_over_groups is not compat.mean_by_group
assert threading.active_count() == 1 and "outdated" not in sys.modules and dict(os.environ) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_another_version_or_none_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with compat.usable() as wilds:
        pass
    monkeypatch.setattr(wilds, "__version__", "3.0.0")
    with pytest.raises(UsageError, match=r"3\.0\.0.*pip install 'selfbench\[wilds\]'"), compat.usable():
        pass
    monkeypatch.setitem(sys.modules, "wilds", None)
    monkeypatch.delitem(sys.modules, "wilds")
    monkeypatch.setattr(compat.importlib, "import_module", _missing)
    with pytest.raises(UsageError, match=r"pip install 'selfbench\[wilds\]'"), compat.usable():
        pass


def _missing(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named '{name}'")
