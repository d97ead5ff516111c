"""The audit of the task `digits-semi`, on the bundle it really uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.tasks.digits import read_digits
from selfbench.tasks.images.digits_semi import DigitsSemi


def test_two_builds_are_equal_to_the_byte(digits_semi: BundleFolder, nothing_fetched: Data, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", DigitsSemi().build(nothing_fetched))
    assert again.sha256 == digits_semi.sha256


def test_it_is_registered() -> None:
    assert registry.get("task", "digits-semi").load() is DigitsSemi


def test_public_arrays_hold_all_images_and_no_label(digits_semi: BundleFolder, nothing_fetched: Data) -> None:
    public, private = digits_semi.public(), digits_semi.private()
    images, labels = read_digits(nothing_fetched)
    assert set(public) == {"images"}
    assert public["images"].dtype == np.uint8

    def rows(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
        return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))

    assert rows(public["images"], private["labels"]) == rows(images, labels)


def test_positions_tell_nothing_about_labels(digits_semi: BundleFolder) -> None:
    labels = digits_semi.private()["labels"]
    for part in (labels[:1197], labels[1197:]):
        for lag in (1, 2, 9, 10, 11):
            assert 0.05 < np.mean(part[lag:] == part[:-lag]) < 0.15


def test_the_split_is_as_declared(digits_semi: BundleFolder) -> None:
    task = DigitsSemi()
    labels = digits_semi.private()["labels"]
    split, other = task.split(digits_semi, 0), task.split(digits_semi, 1)
    assert [len(part) for part in (split.labeled, split.validation, split.unlabeled, split.test)] == [
        40,
        40,
        1117,
        600,
    ]
    assert np.array_equal(np.bincount(labels[split.labeled]), [4] * 10)
    assert np.array_equal(np.bincount(labels[split.validation]), [4] * 10)
    assert np.array_equal(np.bincount(labels[split.test]), [60] * 10)
    assert np.array_equal(split.labels, labels[split.labeled])
    assert np.array_equal(split.test, other.test)
    assert not np.array_equal(split.labeled, other.labeled)
    parts = np.concatenate([split.labeled, split.validation, split.unlabeled, split.test])
    assert np.array_equal(np.sort(parts), np.arange(1797))
    assert np.array_equal(split.labeled, task.split(digits_semi, 0).labeled)


def test_labels_of_the_unlabelled_and_the_test_images_decide_nothing(digits_semi: BundleFolder, tmp_path: Path) -> None:
    """Only the labels that a method may see, and the validation's, shape what it is shown."""
    task = DigitsSemi()
    split = task.split(digits_semi, 0)
    labels = digits_semi.private()["labels"].copy()
    labels[split.test] = np.random.default_rng(0).permutation(labels[split.test])
    changed = write_bundle(
        tmp_path / "changed", Bundle(digits_semi.public(), {"labels": labels}, facts=digits_semi.facts)
    )
    same = task.split(changed, 0)
    for name in ("labeled", "labels", "unlabeled", "validation", "test"):
        assert np.array_equal(getattr(same, name), getattr(split, name))


def test_model_and_inputs_fit(digits_semi: BundleFolder) -> None:
    task = DigitsSemi()
    inputs = task.inputs(digits_semi.public(), np.array([3, 1000, 3]))
    assert inputs.shape == (3, 1, 8, 8)
    assert torch.equal(inputs[0], inputs[2])
    assert task.model()(inputs).shape == (3, 10)
    assert sum(parameter.numel() for parameter in task.model().parameters()) == 24_058
