"""The task `mnist-to-digits`: a miniature MNIST with scikit-learn's real digits, and the audit of the real bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.data.sets import DESCRIPTIONS
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.tasks.digits import read_digits
from selfbench.tasks.images.mnist_to_digits import MnistToDigits, block_means

TRAIN, TEST = 400, 90


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Noise in place of MNIST, in its file and described as such."""
    root = tmp_path_factory.mktemp("data")
    (root / "mnist").mkdir()
    file, random = root / "mnist" / "mnist63k.npz", np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", TRAIN), ("test", TEST)):
        arrays[f"x_{part}"] = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = random.integers(0, 10, n)
    np.savez(file, **arrays)
    described = DESCRIPTIONS.read_text()
    member = Data(root).describe("mnist").members[0]
    described = described.replace(member.sha256, hashlib.sha256(file.read_bytes()).hexdigest())
    described = described.replace(f"size = {member.size}\n", f"size = {file.stat().st_size}\n")
    (root / "datasets.toml").write_text(described)
    return Data(root, root / "datasets.toml")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, miniature: Data) -> BundleFolder:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "mini", MnistToDigits().build(miniature))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    data = Data(data_folder())
    try:
        data.file("mnist", "mnist63k.npz")
    except DataMissing as missing:
        pytest.skip(f"needs the data set mnist: {str(missing).splitlines()[0]}")
    return write_bundle(tmp_path_factory.mktemp("bundles") / "real", MnistToDigits().build(data))


def test_it_is_registered_and_grants_domains() -> None:
    entry = registry.get("task", "mnist-to-digits")
    assert entry.load() is MnistToDigits
    assert {"domains", "strong-augmentation"} <= set(entry.options["grants"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"mnist63k\.npz"):
        MnistToDigits().build(Data(tmp_path))


def test_two_builds_are_equal_to_the_byte(bundle: BundleFolder, miniature: Data, tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "again", MnistToDigits().build(miniature)).sha256 == bundle.sha256


def test_means_of_blocks() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    small = block_means(images)
    assert small.shape == (3, 8, 8)
    assert small.dtype == np.uint8
    for i, j in ((0, 0), (5, 7), (7, 2)):
        block = images[1, 3 * i + 2 : 3 * i + 5, 3 * j + 2 : 3 * j + 5].astype(int)
        assert small[1, i, j] == round(block.sum() / 9)


def test_public_arrays_hold_all_images_and_no_label(bundle: BundleFolder, miniature: Data) -> None:
    public, private = bundle.public(), bundle.private()
    images, labels = read_digits(miniature)
    assert set(public) == {"images"}
    assert public["images"].shape == (TRAIN + TEST + 1797, 8, 8)

    def rows(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
        return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))

    assert rows(public["images"][TRAIN + TEST :], private["labels"][TRAIN + TEST :]) == rows(images, labels)


def test_positions_tell_nothing_about_target_labels(bundle: BundleFolder) -> None:
    labels = bundle.private()["labels"][TRAIN + TEST :]
    for part in (labels[:1197], labels[1197:]):
        for lag in (1, 2, 9, 10, 11):
            assert 0.05 < np.mean(part[lag:] == part[:-lag]) < 0.15


def test_the_split_is_as_declared(bundle: BundleFolder) -> None:
    task, labels = MnistToDigits(), bundle.private()["labels"]
    split, other = task.split(bundle, 0), task.split(bundle, 1)
    start = TRAIN + TEST
    assert np.array_equal(np.sort(split.labeled), np.arange(TRAIN))
    assert np.array_equal(np.sort(split.source_validation), np.arange(TRAIN, start))
    assert np.array_equal(split.test, np.arange(start + 1197, start + 1797))
    assert np.array_equal(split.test, other.test)
    assert np.array_equal(np.bincount(labels[split.test]), [60] * 10)
    assert np.array_equal(np.bincount(labels[split.validation]), [4] * 10)
    assert np.array_equal(np.sort(np.concatenate([split.unlabeled, split.validation])), np.arange(start, start + 1197))
    assert np.array_equal(split.labels, labels[split.labeled])
    assert not np.array_equal(split.labeled, other.labeled)
    assert not np.array_equal(np.sort(split.validation), np.sort(other.validation))
    assert set(split.labeled_domains) == {0}
    assert set(split.unlabeled_domains) == {1}


def test_labels_that_a_method_may_not_see_decide_nothing(bundle: BundleFolder, tmp_path: Path) -> None:
    task = MnistToDigits()
    split = task.split(bundle, 0)
    labels = bundle.private()["labels"].copy()
    for part in (split.test, split.source_validation):
        labels[part] = np.random.default_rng(0).permutation(labels[part])
    changed = write_bundle(tmp_path / "changed", Bundle(bundle.public(), {"labels": labels}, facts=bundle.facts))
    same = task.split(changed, 0)
    for name in ("labeled", "labels", "unlabeled", "validation", "source_validation", "test"):
        assert np.array_equal(getattr(same, name), getattr(split, name))


def test_model_views_and_score_fit(bundle: BundleFolder) -> None:
    task = MnistToDigits()
    inputs = task.inputs(bundle.public(), np.array([3, 1000, 3, 3, 3]))
    assert inputs.shape == (5, 1, 8, 8)
    assert torch.equal(inputs[0], inputs[2])
    assert task.model()(inputs).shape == (5, 10)
    assert sum(parameter.numel() for parameter in task.model().parameters()) == 24_058
    for view in (task.weak, task.strong):
        seen = view(inputs, torch.Generator().manual_seed(0))
        assert seen.shape == inputs.shape
        assert 0 <= seen.min() <= seen.max() <= 1
        assert len({tuple(image.flatten().tolist()) for image in seen[[0, 2, 3, 4]]}) > 1
    logits = F.one_hot(torch.tensor([0, 1, 1, 2]), 10).double().numpy()
    scores = task.score(logits, np.array([0, 1, 2, 2]))
    assert scores.metrics["error"] == 0.25
    assert scores.metrics["worst_group_error"] == 0.5
    assert scores.groups["error"] == {"0": 0.0, "1": 0.0, "2": 0.5}


def test_the_real_bundle(real: BundleFolder) -> None:
    labels, public = real.private()["labels"], real.public()
    assert public["images"].shape == (64_797, 8, 8)
    split = MnistToDigits().split(real, 0)
    sizes = {name: len(getattr(split, name)) for name in ("labeled", "unlabeled", "validation", "test")}
    assert sizes == {"labeled": 10_000, "unlabeled": 1_157, "validation": 40, "test": 600}
    assert len(split.source_validation) == 1_000
    assert np.bincount(labels[split.labeled]).min() > 800


def test_digits_of_both_collections_are_of_about_one_size(real: BundleFolder) -> None:
    """Otherwise a model of the source sees one class in the target, from which no labelling of one's own recovers."""
    split, images = MnistToDigits().split(real, 0), real.public()["images"].astype(float)

    def spread(rows: np.ndarray) -> float:
        """The root of the mean variance of where the ink is, in pixels, along both axes."""
        ink, at = images[rows].sum(axis=0), np.arange(8.0)
        along = [ink.sum(axis=1), ink.sum(axis=0)]
        return float(np.sqrt(np.mean([np.average((at - np.average(at, weights=w)) ** 2, weights=w) for w in along])))

    assert 0.8 < spread(split.labeled) / spread(split.test) < 1.25
