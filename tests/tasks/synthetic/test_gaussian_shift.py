from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from selfbench.methods.baselines.erm import Erm
from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.mean_teacher.mean_teacher import MeanTeacher
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.tasks.synthetic import gaussian_shift as room
from selfbench.tasks.synthetic.gaussian_shift import (
    GaussianShiftD20N1000,
    GaussianShiftD20N10000,
    GaussianShiftD200N1000,
    averaging_error,
    bayes_error,
    centres,
    exact_error,
    sample,
)

OUT = slice(room.IN_POOL, room.IN_POOL + room.OUT_POOL)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, nothing_fetched: Data) -> BundleFolder:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "d20", GaussianShiftD20N1000().build(nothing_fetched))


def test_the_four_tasks_are_registered_and_share_bundles() -> None:
    bundles = {}
    for d in (20, 200):
        for n in (1_000, 10_000):
            entry = registry.get("task", f"gaussian-shift-d{d}-n{n}")
            task = entry.load()
            assert (task.d, task.n) == (d, n)
            bundles[d, n] = entry.options["bundle"]
    assert bundles[20, 1_000] == bundles[20, 10_000] != bundles[200, 1_000] == bundles[200, 10_000]


def test_builds_are_equal_to_the_byte_for_both_tasks(
    bundle: BundleFolder, nothing_fetched: Data, tmp_path: Path
) -> None:
    assert write_bundle(tmp_path / "again", GaussianShiftD20N10000().build(nothing_fetched)).sha256 == bundle.sha256
    assert set(bundle.public()) == {"inputs"}


def test_pools_are_drawn_from_their_mixtures(bundle: BundleFolder) -> None:
    inputs, labels = bundle.public()["inputs"], bundle.private()["labels"]
    mu, shifted = centres(20)
    assert np.linalg.norm(mu) == pytest.approx(1.0)
    assert np.linalg.norm(shifted - mu) == pytest.approx(0.5)
    signed = (2 * labels[:, None] - 1) * inputs
    for part, centre in ((slice(0, room.IN_POOL), mu), (OUT, shifted), (slice(OUT.stop, None), mu)):
        n = len(signed[part])
        # A mean of n has the standard error 1 / sqrt(n) in each of the 20 coordinates.
        assert np.abs(signed[part].mean(0) - centre).max() < 4.5 / n**0.5
        assert np.abs(np.cov(signed[part].T) - np.eye(20)).max() < 6.5 / n**0.5
        assert abs(labels[part].mean() - 0.5) < 2 / n**0.5


def test_without_views_supervised_and_erm_are_one_computation(bundle: BundleFolder, play: Callable[..., Any]) -> None:
    """So that suites have `supervised` alone there: docs/architecture.md."""
    task = GaussianShiftD20N1000()
    weak, plain, other = (play(method, task, bundle, limit=3_000.0) for method in (Supervised(), Erm(), MeanTeacher()))
    assert weak.predictions_sha256 == plain.predictions_sha256 != other.predictions_sha256


def test_the_split_is_as_declared(bundle: BundleFolder) -> None:
    labels = bundle.private()["labels"]
    splits = [GaussianShiftD20N1000().split(bundle, seed) for seed in (0, 1)]
    for split in splits:
        sizes = [len(part) for part in (split.labeled, split.validation, split.unlabeled, split.test)]
        assert sizes == [40, 40, 1_000, 10_000]
        assert np.array_equal(split.labels, labels[split.labeled])
        assert not np.intersect1d(split.labeled, split.validation).size
        assert split.labeled.max() < room.IN_POOL
        assert OUT.start <= split.unlabeled.min()
        assert split.unlabeled.max() < OUT.stop <= split.test.min()
    assert not np.array_equal(splits[0].labeled, splits[1].labeled)
    assert np.array_equal(splits[0].test, splits[1].test)
    assert len(GaussianShiftD20N10000().split(bundle, 0).unlabeled) == 10_000


def test_the_exact_error_is_what_is_measured_on_many_examples() -> None:
    draw = np.random.default_rng(0)
    mu = draw.normal(size=5)
    y = 2 * draw.integers(0, 2, 400_000) - 1
    x = y[:, None] * mu + draw.normal(size=(len(y), 5))
    for b in (0.0, 0.7, -3.0):
        w = mu + draw.normal(size=5)
        wrong = np.mean((x @ w + b > 0) != (y > 0))
        assert exact_error(w, mu, b) == pytest.approx(wrong, abs=4.5 * (0.25 / len(y)) ** 0.5)
        assert exact_error(3 * w, mu, 3 * b) == pytest.approx(exact_error(w, mu, b), abs=1e-14)
    assert bayes_error(mu) == pytest.approx(norm.cdf(-np.linalg.norm(mu)), abs=1e-15)
    assert exact_error(mu, mu) == pytest.approx(bayes_error(mu), abs=1e-15)
    assert exact_error(-mu, mu) == pytest.approx(1 - bayes_error(mu), abs=1e-15)
    assert exact_error(0 * mu, mu) == 0.5


def _logits(task: Any, w: np.ndarray, b: float = 0.0) -> np.ndarray:
    margins = (task._test[0] @ w.astype(np.float32) + np.float32(b)).astype(np.float32)
    return np.stack([np.zeros_like(margins), margins], axis=1)


def test_scores_of_linear_predictors_are_exact(bundle: BundleFolder) -> None:
    task = GaussianShiftD20N1000()
    mu, shifted = centres(20)
    assert np.array_equal(task._test[0], bundle.public()["inputs"][-room.TEST :])
    labels = task._test[1]
    assert np.array_equal(labels, bundle.private()["labels"][-room.TEST :])
    for w, b in ((mu, 0.0), (shifted, 0.0), (np.random.default_rng(1).normal(size=20), 0.4)):
        metrics = task.score(_logits(task, w, b), labels).metrics
        assert metrics["exact_error"] == pytest.approx(exact_error(w, mu, b), abs=1e-6)
        assert metrics["excess_error"] == pytest.approx(metrics["exact_error"] - norm.cdf(-1.0), abs=1e-12)
        assert metrics["exact_error"] == pytest.approx(metrics["error"], abs=0.02)
        assert metrics["exact_error"] != metrics["error"]
    assert task.score(_logits(task, mu), labels).metrics["excess_error"] == pytest.approx(0.0, abs=1e-6)


def test_scores_of_other_predictors_are_the_measured_ones() -> None:
    task = GaussianShiftD20N1000()
    logits = _logits(task, centres(20)[0])
    logits[:, 1] **= 3
    metrics = task.score(logits, task._test[1]).metrics
    assert metrics["exact_error"] == metrics["error"]
    constant = np.zeros_like(logits) + np.array([0.0, 1.0], np.float32)
    assert task.score(constant, task._test[1]).metrics["exact_error"] == 0.5
    few = task.score(logits[:40], task._test[1][:40]).metrics
    assert "exact_error" not in few


@pytest.mark.parametrize(("d", "n"), [(20, 40), (200, 40), (200, 1_000)])
def test_the_curve_is_what_averaging_reaches(d: int, n: int) -> None:
    """Around mu_0 and around the shifted centre, averaged over 200 draws."""
    draw = np.random.default_rng(5)
    for centre in centres(d):
        noise = draw.normal(size=(200, d)) / n**0.5
        errors = [exact_error(centre + one, centres(d)[0]) for one in noise]
        assert averaging_error(centres(d)[0], centre, n) == pytest.approx(np.mean(errors), abs=0.006)


@pytest.mark.parametrize(("m", "accuracy"), [(10, 0.59), (20, 0.62), (40, 0.65), (10_000, 0.83)])
def test_the_curve_is_the_authors_supervised_one(m: int, accuracy: float) -> None:
    """The table of their poster, d = 200: this is how sigma = 1 is known."""
    mu = centres(200)[0]
    assert 1 - averaging_error(mu, mu, m) == pytest.approx(accuracy, abs=0.011)


def test_samples_of_other_names_are_others() -> None:
    mu = centres(20)[0]
    assert not np.array_equal(sample(mu, 50, "a")[0], sample(mu, 50, "b")[0])
    assert GaussianShiftD200N1000().model()(
        GaussianShiftD200N1000().inputs({"inputs": np.ones((3, 200))}, np.arange(2)).float()
    ).shape == (2, 2)


@pytest.mark.parametrize("d", [20, 200])
def test_the_curves_of_the_page_are_the_closed_forms(d: int) -> None:
    own = registry.get("task", f"gaussian-shift-d{d}-n1000").options["references"]
    mu, shifted = room.centres(d)
    for n, value in own["curves"]["oracle labels"]:
        assert value == pytest.approx(room.averaging_error(mu, shifted, n), abs=1e-6)
    for _, value in own["curves"]["labels alone"]:
        assert value == pytest.approx(room.averaging_error(mu, mu, room.LABELED), abs=1e-6)
    for _, value in own["curves"]["Bayes"]:
        assert value == pytest.approx(room.bayes_error(mu), abs=1e-6)
    for n in (1_000, 10_000):
        entry = registry.get("task", f"gaussian-shift-d{d}-n{n}")
        assert entry.options["references"]["at"] == entry.load().n == n
        assert entry.options["references"]["panel"] == f"d = {d}"
