"""The WILDS tasks on miniatures: official splits and metrics, no label where it may not be, runs from end to end."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.tasks.wilds import compat
from selfbench.tasks.wilds.task import OFFICIAL, WildsTask

NAMES = ["camelyon17", "iwildcam", "fmow", "rxrx1", "civilcomments", "amazon"]
Bundles = Callable[[str], BundleFolder]
Miniature = Callable[[str], WildsTask]


def stock(root: Path, name: str, unlabeled: bool = False) -> Any:
    with compat.usable(published_counts=False) as wilds, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wilds.get_dataset(name, root_dir=str(root / "wilds"), download=False, unlabeled=unlabeled)


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_the_official_ones_in_official_order(
    wilds_data: Path, bundles: Bundles, miniature: Miniature, name: str
) -> None:
    task, bundle, dataset = miniature(name), bundles(name), stock(wilds_data, name)
    split, private = task.split(bundle, 0), bundle.private()
    parts = {"labeled": "train", **OFFICIAL}
    assert set(dataset.split_dict) <= set(parts.values())
    for ours, theirs in parts.items():
        indices = getattr(split, ours)
        if theirs not in dataset.split_dict:
            assert len(indices) == 0
            continue
        subset = dataset.get_subset(theirs)
        assert len(subset) > 0
        np.testing.assert_array_equal(task.labels(private, indices), subset.metadata_array.numpy())
        np.testing.assert_array_equal(private["labels"][indices], subset.y_array.numpy())
    np.testing.assert_array_equal(split.labels, dataset.get_subset("train").y_array.numpy())
    if task.domain:
        fields = dataset.metadata_fields
        np.testing.assert_array_equal(
            split.labeled_domains, dataset.get_subset("train").metadata_array[:, fields.index(task.domain)].numpy()
        )
    if task.unlabeled_split is None:
        assert len(split.unlabeled) == 0
    else:
        pool = stock(wilds_data, name, unlabeled=True).get_subset(task.unlabeled_split)
        assert len(split.unlabeled) == len(pool) > 0
    assert task.split(bundle, 1).labeled.tolist() == split.labeled.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_reaches_a_method_knows_hidden_classes(
    miniatures: Any, miniature: Miniature, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A data set whose hidden classes are others gives the same public arrays and plan, byte for byte."""
    task, first = miniature(name), bundles(name)
    miniatures.ALL[name](tmp_path / "wilds", hidden=1)
    miniatures.distilbert(tmp_path / "distilbert-base-uncased")
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    second = miniature(name).build(Data(tmp_path))
    public = first.public()
    assert set(public) == set(second.public)
    for part, array in public.items():
        np.testing.assert_array_equal(array, second.public[part])
        assert array.dtype == second.public[part].dtype
    known = first.private()["labels"]
    split = task.split(first, 0)
    hidden = [part for part in OFFICIAL if len(getattr(split, part))]
    assert any((known[getattr(split, part)] != second.private["labels"][getattr(split, part)]).any() for part in hidden)
    for part in ("labeled", *OFFICIAL, "unlabeled", "labels", "labeled_domains", "unlabeled_domains"):
        again = _split_of(task, second)
        np.testing.assert_array_equal(getattr(split, part), getattr(again, part))


def _split_of(task: WildsTask, bundle: Any) -> Any:
    folder = type("Folder", (), {"private": lambda self: bundle.private, "facts": bundle.facts})()
    return task.split(folder, 0)


LEAKY = ("iwildcam", "fmow", "civilcomments", "amazon")


@pytest.mark.parametrize("name", LEAKY)
def test_the_package_hands_out_classes_of_unlabelled_examples_and_the_task_does_not(
    wilds_data: Path, bundles: Bundles, miniature: Miniature, name: str
) -> None:
    task, bundle, pool = miniature(name), bundles(name), stock(wilds_data, name, unlabeled=True)
    subset = pool.get_subset(task.unlabeled_split)
    leaked = subset.metadata_array[:, pool.metadata_fields.index("y")].numpy().astype(np.int64)
    assert len(np.unique(leaked)) > 1
    hidden = bundle.private()["labels"][task.split(bundle, 0).unlabeled]
    np.testing.assert_array_equal(hidden, leaked)
    for array in bundle.public().values():
        if np.issubdtype(array.dtype, np.number) and array.ndim == 1:
            assert len(array) != len(hidden) + len(bundle.private()["metadata"])


def independent(name: str, y: np.ndarray, p: np.ndarray, metadata: np.ndarray, fields: list[str], root: Path) -> float:
    """The primary official metric, from its definition."""
    hit = p == y

    def by(field: str) -> dict[int, float]:
        column = metadata[:, fields.index(field)]
        return {int(value): float(hit[column == value].mean()) for value in np.unique(column)}

    if name == "iwildcam":
        return float(f1_score(y, p, average="macro", labels=np.unique(y)))
    if name == "fmow":
        regions = stock(root, name).metadata_map["region"]
        return min(value for region, value in by("region").items() if regions[region] != "Other")
    if name == "civilcomments":
        identities = fields[:8]
        present = [(metadata[:, fields.index(item)] == 1) & (y == label) for item in identities for label in (0, 1)]
        return float(min(hit[group].mean() for group in present))
    if name == "amazon":
        return float(np.percentile(list(by("user").values()), 10))
    return float(hit.mean())


@pytest.mark.parametrize("name", NAMES)
def test_official_metrics_equal_their_definition(
    at_home: Path, bundles: Bundles, miniature: Miniature, name: str
) -> None:
    task, bundle = miniature(name), bundles(name)
    split, fields = task.split(bundle, 0), bundle.facts["metadata_fields"]
    draw = np.random.default_rng(0)
    for part in OFFICIAL:
        indices = getattr(split, part)
        if not len(indices):
            continue
        metadata = task.labels(bundle.private(), indices)
        y = metadata[:, fields.index("y")]
        logits = draw.normal(size=(len(y), task.n_classes)).astype(np.float32)
        logits[np.arange(len(y)), y] += 1.5
        scores = task.score(logits, metadata)
        primary = next(iter(task.official_metrics.values()))
        assert primary == type(task).__selfbench__["metric"]
        expected = independent(name, y, logits.argmax(1), metadata, fields, at_home)
        assert scores.metrics[primary] == pytest.approx(expected, abs=1e-5)
        assert scores.metrics["accuracy"] == pytest.approx((logits.argmax(1) == y).mean(), abs=1e-6)
        assert scores.n == len(y)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_from_end_to_end(
    at_home: Path, bundles: Bundles, miniature: Miniature, play: Callable[..., Any], name: str
) -> None:
    task, bundle = miniature(name), bundles(name)
    outcome = play(Supervised(), task, bundle, limit=300.0)
    again = play(Supervised(), task, bundle, limit=300.0)
    assert outcome.predictions_sha256 == again.predictions_sha256
    split = task.split(bundle, 0)
    with np.load(outcome.predictions) as kept:
        assert {part: len(kept[part]) for part in kept} == {
            part: len(getattr(split, part)) for part in OFFICIAL if len(getattr(split, part))
        }
        metadata = task.labels(bundle.private(), split.test)
        y = torch.from_numpy(metadata[:, bundle.facts["metadata_fields"].index("y")])
        official = task.official(torch.from_numpy(kept["test"]), y, torch.from_numpy(metadata))
    for theirs, ours in task.official_metrics.items():
        assert outcome.metrics[ours] == pytest.approx(float(official[theirs]), abs=1e-7)
    values = outcome.curve[-1].values
    assert {"validation"} | ({"source_test"} if len(split.source_test) else set()) <= set(values)


def test_the_published_network_of_camelyon17() -> None:
    importlib.import_module("torchvision")
    task = importlib.import_module("selfbench.tasks.wilds.camelyon17").WildsCamelyon17()
    net = task.model().eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 6_955_906
    assert net(torch.rand(1, 3, 96, 96)).shape == (1, 2)
