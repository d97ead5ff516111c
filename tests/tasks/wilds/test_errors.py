"""Data that is not as published: the error names file, row and remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, MethodError, UsageError
from selfbench.suite.prepare.decoded import DecodedFolder, fill
from selfbench.suite.prepare.decoded_option import Decoded
from selfbench.suite.run.scorer import make_scorer
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.suites import make_spec
from selfbench.tasks.wilds.tables import COUNTED
from selfbench.tasks.wilds.task import WildsTask

NAMES = [
    "camelyon17",
    "iwildcam",
    "fmow",
    "rxrx1",
    "civilcomments",
    "amazon",
    "poverty",
    "globalwheat",
    "py150",
    "ogb-molpcba",
]
Miniature = Callable[[str], WildsTask]


@pytest.fixture
def fresh(miniatures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """fresh(name): the folder `wilds` of a data root that holds one miniature, to be damaged."""

    def make(name: str) -> Path:
        monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
        miniatures.ALL[name](tmp_path / "wilds")
        miniatures.distilbert(tmp_path / "distilbert-base-uncased")
        return tmp_path / "wilds"

    return make


def refusal(task: WildsTask, root: Path, *expected: str) -> None:
    with pytest.raises(DataMissing) as caught:
        task.build(Data(root.parent))
    for text in expected:
        assert text in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_member_is_named_with_its_place(
    fresh: Callable[[str], Path], miniature: Miniature, name: str
) -> None:
    root = fresh(name)
    for member in Data(root.parent).describe(f"wilds-{name}").members:
        path = root / member.name
        hidden = path.with_name("hidden")
        path.rename(hidden)
        refusal(miniature(name), root, f"{path} is missing", f"at {path}", "wilds.stanford.edu", "root_dir")
        hidden.rename(path)
    miniature(name).build(Data(root.parent))


def test_an_empty_data_root_says_what_to_put_where(tmp_path: Path) -> None:
    entry = registry.get("task", "wilds-iwildcam")
    with pytest.raises(DataMissing, match=r"iwildcam_v2\.0/RELEASE_v2\.0\.txt is missing"):
        entry.load()().build(Data(tmp_path))


CELLS = [
    ("camelyon17", "camelyon17_v1.0/metadata.csv", "center", 5, "from 0 to 4"),
    ("camelyon17", "camelyon17_v1.0/metadata.csv", "tumor", 2, "one of 0, 1"),
    ("camelyon17", "camelyon17_unlabeled_v1.0/metadata.csv", "slide", 50, "from 0 to 49"),
    ("iwildcam", "iwildcam_v2.0/metadata.csv", "split", "tset", "one of train, val, test"),
    ("iwildcam", "iwildcam_v2.0/metadata.csv", "y", -3, "from 0 to inf"),
    ("fmow", "fmow_v1.1/rgb_metadata.csv", "category", "zooo", "one of airport"),
    ("fmow", "fmow_v1.1/rgb_metadata.csv", "split", "dev", "one of train"),
    ("rxrx1", "rxrx1_v1.0/metadata.csv", "site", 3, "one of 1, 2"),
    ("poverty", "poverty_v1.1/dhs_metadata.csv", "country", "atlantis", "one of angola"),
    ("poverty", "poverty_v1.1/dhs_metadata.csv", "wealthpooled", "rich", "from -100 to 100"),
    ("poverty", "poverty_v1.1/dhs_metadata.csv", "urban", "maybe", "one of True, False"),
    ("poverty", "poverty_unlabeled_v1.0/unlabeled_metadata.csv", "country", None, "one of angola"),
    ("globalwheat", "globalwheat_v1.1/official_val.csv", "domain", 47, "from 0 to 46"),
    ("globalwheat", "globalwheat_v1.1/official_val.csv", "BoxesString", "1 2 3", "four whole numbers"),
    ("globalwheat", "globalwheat_v1.1/official_test.csv", "BoxesString", "1 2 3 exit(1)", "four whole numbers"),
    ("globalwheat", "globalwheat_v1.1/official_train.csv", "BoxesString", None, "'no_box' or boxes"),
    ("py150", "py150_v1.0/metadata/repo_file_names/repo_ids.csv", "id", -1, "from 0 to inf"),
    ("civilcomments", "civilcomments_v1.0/all_data_with_identities.csv", "toxicity", 1.5, "from 0 to 1"),
    ("civilcomments", "civilcomments_v1.0/all_data_with_identities.csv", "split", None, "one of train"),
    ("civilcomments", "civilcomments_v1.0/all_data_with_identities.csv", "muslim", None, "from 0 to 1"),
    ("civilcomments", "civilcomments_v1.0/all_data_with_identities.csv", "white", 1.2, "from 0 to 1"),
    ("civilcomments", "civilcomments_v1.0/all_data_with_identities.csv", "LGBTQ", "yes", "from 0 to inf"),
    ("iwildcam", "iwildcam_v2.0/metadata.csv", "datetime", "5 June", "a date such as 2013-06-05 05:44:19.000000"),
    ("iwildcam", "iwildcam_v2.0/metadata.csv", "datetime", None, "a date such as 2013-06-05"),
    ("iwildcam", "iwildcam_unlabeled_v1.0/metadata.csv", "datetime", "2013-13-05 05:44:19.000", "a date such as"),
    ("amazon", "amazon_v2.1/reviews.csv", "overall", 6.0, "one of 1, 2, 3, 4, 5"),
    ("amazon", "amazon_v2.1/splits/user.csv", "split", 7, "one of -1, 0"),
]


@pytest.mark.parametrize(("name", "file", "column", "value", "expected"), CELLS)
def test_a_cell_out_of_range_is_named_with_its_row(
    fresh: Callable[[str], Path], miniature: Miniature, name: str, file: str, column: str, value: Any, expected: str
) -> None:
    root = fresh(name)
    table = pd.read_csv(root / file, dtype=object)
    table.loc[6, column] = value
    table.to_csv(root / file, index=False)
    refusal(miniature(name), root, str(root / file), "row 7", f"'{column}'", expected, COUNTED, "archive again")


def test_missing_rows_are_seen_by_their_classes(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root = fresh("iwildcam")
    file = root / "iwildcam_v2.0" / "metadata.csv"
    table = pd.read_csv(file)
    table[table["y"] != 3].to_csv(file, index=False)
    refusal(miniature("iwildcam"), root, str(file), "no row has the y 3")


def test_another_number_of_classes_is_refused(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root, task = fresh("rxrx1"), miniature("rxrx1")
    type(task).n_classes = 1139
    refusal(task, root, "rxrx1_v1.0 has 8 classes, expected 1139")


def test_an_unknown_split_is_refused(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root, task = fresh("fmow"), miniature("fmow")
    type(task).unlabeled_split = "extra_unlabeled"
    with pytest.raises(UsageError, match="no unlabelled split 'extra_unlabeled'; it has train_unlabeled"):
        task.build(Data(root.parent))


def test_a_table_that_lost_a_column_or_rows_is_refused(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root = fresh("amazon")
    file = root / "amazon_v2.1" / "splits" / "user.csv"
    table = pd.read_csv(file)
    table.iloc[:-5].to_csv(file, index=False)
    refusal(miniature("amazon"), root, "wilds cannot read the data of amazon", "archive again")
    table.rename(columns={"split": "part"}).to_csv(file, index=False)
    refusal(miniature("amazon"), root, str(file), "split")


def test_published_row_counts_are_checked(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root, task = fresh("camelyon17"), miniature("camelyon17")
    type(task).published_counts = True
    refusal(task, root, "wilds cannot read the unlabelled data of camelyon17")


def test_missing_pictures_are_counted_before_a_run(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root = fresh("iwildcam")
    for path in sorted((root / "iwildcam_v2.0" / "train").iterdir())[:3]:
        path.unlink()
    refusal(miniature("iwildcam"), root, "is missing, and 3 of the 90 pictures", "iwildcam_v2.0")


def test_a_truncated_picture_is_named(fresh: Callable[[str], Path], miniature: Miniature) -> None:
    root, task = fresh("camelyon17"), miniature("camelyon17")
    bundle = task.build(Data(root.parent))
    path = root / bundle.public["paths"][5].decode()
    path.write_bytes(path.read_bytes()[:2000])
    folder = DecodedFolder(root.parent / "decoded", Decoded(160, (3, 16, 16)))
    for ask in (
        lambda: task.inputs(bundle.public, np.arange(8)),
        lambda: fill(folder, lambda rows: task.decoded(bundle.public, rows), 160),
    ):
        with pytest.raises(DataMissing) as caught:
            ask()
        assert str(path) in str(caught.value)
        assert "Get the file again" in str(caught.value)
    shutil.rmtree(path.parent)
    with pytest.raises(DataMissing, match="cannot be read: No such file"):
        task.inputs(bundle.public, np.arange(8))


def spec_of(name: str, selection: str) -> RunSpec:
    task = TaskRef(name=f"wilds-{name}", version="1")
    return RunSpec(task=task, method=MethodRef(name="supervised", version="1"), seed=0, selection=selection,
                   budget=Budget(limit=10))  # fmt: skip


@pytest.mark.parametrize("selection", ["entropy", "transfer-score"])
@pytest.mark.parametrize(
    ("name", "why"), [("rxrx1", "has no unlabelled examples"), ("poverty", "the outputs of this task are none")]
)
def test_a_rule_that_has_nothing_to_look_at_is_refused_before_the_run(
    at_home: Path, bundles: Callable[[str], BundleFolder], miniature: Miniature, tmp_path: Path, name: str, why: str,
    selection: str,
) -> None:  # fmt: skip
    with pytest.raises(MethodError, match=f"selection '{selection}' looks at .*{why}; choose another rule with --sel"):
        make_scorer(miniature(name), bundles(name), spec_of(name, selection), tmp_path)
    make_scorer(miniature("camelyon17"), bundles("camelyon17"), spec_of("camelyon17", selection), tmp_path)


@pytest.mark.parametrize("selection", ["entropy", "transfer-score"])
@pytest.mark.parametrize("name", ["poverty", "globalwheat", "py150", "ogb-molpcba"])
def test_a_rule_for_classes_is_refused_where_a_run_is_planned(name: str, selection: str) -> None:
    task, method = registry.get("task", f"wilds-{name}"), registry.get("method", "supervised")
    with pytest.raises(UsageError, match=rf"returns {task.options['outputs']}; type --selection validation\."):
        make_spec(task, method, {}, 0, selection=selection)
    assert not task.load().label_free
