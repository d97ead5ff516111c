"""The audit of the tasks `digits-c-continual` and `digits-c-mixed`, on the bundle they really use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import GateError
from selfbench.suite.pretrain import check_gate, error_rate, load_weights
from selfbench.suite.protocols.stream import StreamTask
from selfbench.tasks.digits import as_tensor, read_digits
from selfbench.tasks.streams.corruptions import NAMES, SEVERITIES, corrupt
from selfbench.tasks.streams.digits_c import (
    WEIGHTS,
    WEIGHTS_SHA256,
    DigitsCContinual,
    DigitsCMixed,
    halves,
    train_source,
)

TASKS = [DigitsCContinual, DigitsCMixed]


@pytest.fixture(scope="module")
def base(nothing_fetched: Data) -> tuple[np.ndarray, np.ndarray]:
    """The clean images and classes of the half that the streams are made of."""
    images, labels = read_digits(nothing_fetched)
    _, chosen = halves(labels)
    return images[chosen], labels[chosen]


def test_two_builds_are_equal_to_the_byte(digits_c: BundleFolder, nothing_fetched: Data, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", DigitsCMixed().build(nothing_fetched))
    assert again.sha256 == digits_c.sha256
    assert again.facts == digits_c.facts


def test_both_tasks_are_registered_with_one_bundle_and_an_equal_budget() -> None:
    found = [registry.get("task", name) for name in ("digits-c-continual", "digits-c-mixed")]
    assert [entry.load() for entry in found] == TASKS
    assert {entry.options["bundle"] for entry in found} == {"digits-c"}
    assert {entry.options["budget"]["limit"] for entry in found} == {50 * len(NAMES) * 901}


def test_the_source_half_and_the_base_are_disjoint_and_balanced(nothing_fetched: Data) -> None:
    _, labels = read_digits(nothing_fetched)
    source, base = halves(labels)
    assert sorted([*source, *base]) == list(range(1797))
    assert (len(source), len(base)) == (896, 901)
    difference = np.bincount(labels[base]) - np.bincount(labels[source])
    assert set(difference) <= {0, 1}


def test_public_arrays_hold_images_alone_and_private_ones_their_labels(
    digits_c: BundleFolder, base: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = base
    public, private = digits_c.public(), digits_c.private()
    assert set(public) == {"images"}
    assert set(private) == {"labels"}
    assert public["images"].dtype == np.uint8
    n = len(images)
    for corruption, severity in ((0, 1), (4, 3), (14, 5)):
        start = (corruption * len(SEVERITIES) + severity - 1) * n
        expected = corrupt(images / 255.0, np.arange(n), NAMES[corruption], severity)
        assert np.array_equal(public["images"][start : start + n], expected)
        assert np.array_equal(private["labels"][start : start + n], labels)


def test_positions_tell_nothing_about_labels(base: tuple[np.ndarray, np.ndarray]) -> None:
    """The data set's own order repeats the classes: neighbours, and images ten apart, would betray each other."""
    _, labels = base
    for lag in (1, 2, 9, 10, 11):
        assert 0.05 < np.mean(labels[lag:] == labels[:-lag]) < 0.15
    position = np.arange(len(labels))
    assert max(abs(np.corrcoef(position, labels == digit)[0, 1]) for digit in range(10)) < 0.12


def test_the_source_model_passes_its_gate_and_the_shift_is_real(digits_c: BundleFolder) -> None:
    task = DigitsCContinual()
    check_gate(task, digits_c.facts)
    with pytest.raises(GateError):
        check_gate(task, digits_c.facts | {"clean_error": 0.2})
    model = task.model()
    model.load_state_dict(digits_c.model())
    public, private = digits_c.public(), digits_c.private()
    stream = task.stream(digits_c, 0)
    inputs = task.images(public, stream.indices)
    labels = torch.from_numpy(task.labels(private, stream.indices))
    assert 0.3 < error_rate(model.eval(), inputs, labels) < 0.65


def test_the_stored_weights_have_the_stored_clean_error(
    digits_c: BundleFolder, base: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = base
    model = DigitsCContinual().model()
    model.load_state_dict(digits_c.model())
    measured = error_rate(model.eval(), as_tensor(images), torch.from_numpy(labels))
    assert measured == digits_c.facts["clean_error"]


def test_training_anew_ends_where_the_kept_weights_are(
    digits_c: BundleFolder, nothing_fetched: Data, base: tuple[np.ndarray, np.ndarray]
) -> None:
    """Bit by bit on one kind of processor only; within the gate, and of one opinion, on every kind."""
    again = train_source(*read_digits(nothing_fetched))
    images, labels = base
    kept = DigitsCContinual().model()
    kept.load_state_dict(digits_c.model())
    inputs = as_tensor(images)
    low, high = DigitsCContinual.clean_error
    assert low <= error_rate(again, inputs, torch.from_numpy(labels)) <= high
    with torch.no_grad():
        assert (again(inputs).argmax(1) == kept.eval()(inputs).argmax(1)).float().mean() > 0.97


def test_weights_of_another_digest_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(WEIGHTS.read_bytes()[:-1] + b"!")
    with pytest.raises(GateError, match="sha256"):
        load_weights(file, WEIGHTS_SHA256)
    with pytest.raises(GateError, match="missing"):
        load_weights(tmp_path / "none.safetensors", WEIGHTS_SHA256)


@pytest.mark.parametrize("task_class", TASKS)
def test_streams_are_hashed_and_follow_the_seed(task_class: type[StreamTask], digits_c: BundleFolder) -> None:
    task = task_class()
    assert task.stream(digits_c, 0).sha256 == task.stream(digits_c, 0).sha256
    assert task.stream(digits_c, 0).sha256 != task.stream(digits_c, 1).sha256


@pytest.mark.parametrize(
    ("task_class", "digest"),
    [
        (DigitsCContinual, "08b3aa12d4ac8548ed9c93ae3591782fcc84118fdea328efd49f4d10b79756d2"),
        (DigitsCMixed, "2c9c995b28d1e557efc4ede80cc34fd989bd0f5fed72219ebd0a84cbfb231752"),
    ],
)
def test_streams_of_version_1_never_change(task_class: type[StreamTask], digest: str, digits_c: BundleFolder) -> None:
    assert task_class().stream(digits_c, 0).sha256 == digest


@pytest.mark.parametrize("task_class", TASKS)
def test_streams_read_no_labels(task_class: type[StreamTask], digits_c: BundleFolder, tmp_path: Path) -> None:
    """Whatever the hidden labels are, a method sees the same images in the same order."""
    bare = write_bundle(tmp_path / "bare", Bundle(digits_c.public(), private={}, facts=digits_c.facts))
    assert task_class().stream(bare, 3).sha256 == task_class().stream(digits_c, 3).sha256


def test_continual_shows_every_image_once_in_each_corruption(digits_c: BundleFolder) -> None:
    stream = DigitsCContinual().stream(digits_c, 5)
    n = digits_c.facts["base_images"]
    assert stream.domain_names == NAMES
    assert np.array_equal(stream.domains, np.repeat(np.arange(15), n))
    for number in range(15):
        part = stream.indices[stream.domains == number]
        first = (number * 5 + 4) * n
        assert np.array_equal(np.sort(part), np.arange(first, first + n))
    sizes = np.diff(stream.cuts)
    assert set(sizes[:-1]) == {64}


def test_mixed_is_balanced_and_shuffled(digits_c: BundleFolder) -> None:
    stream = DigitsCMixed().stream(digits_c, 5)
    n = digits_c.facts["base_images"]
    group, image = np.divmod(stream.indices, n)
    corruption, level = np.divmod(group, 5)
    assert np.array_equal(corruption, stream.domains)
    assert len(set(zip(corruption, image, strict=True))) == 15 * n == len(stream.indices)
    per_cell = np.bincount(group, minlength=75)
    assert per_cell.max() - per_cell.min() <= 1
    assert np.array_equal(level, (image + corruption) % 5)
    assert abs(np.corrcoef(corruption[1:], corruption[:-1])[0, 1]) < 0.03


def test_images_are_a_pure_function_of_the_index(digits_c: BundleFolder) -> None:
    task, public = DigitsCMixed(), digits_c.public()
    indices = np.array([5, 60_000, 5])
    batch = task.images(public, indices)
    assert batch.shape == (3, 1, 8, 8)
    assert batch.dtype == torch.float32
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(batch[1], task.images(public, indices[1:2])[0])
    assert 0.0 <= float(batch.min()) <= float(batch.max()) <= 1.0
