"""PovertyMap: the five folds, numbers in place of classes, views of eight bands."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.erm import Erm
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, MethodError
from selfbench.suite.suites import misfit
from selfbench.tasks.wilds import compat
from selfbench.tasks.wilds.multispectral_views import (
    blur,
    crop_view,
    hide_square,
    move,
    recolour,
    strong_view,
    weak_view,
)
from selfbench.tasks.wilds.poverty import FOLDS, WildsPoverty
from selfbench.tasks.wilds.task import OFFICIAL, WildsTask

Bundles = Callable[[str], BundleFolder]
Miniature = Callable[[str], WildsTask]


def stock(root: Path, fold: str, unlabeled: bool = False) -> Any:
    with compat.usable() as wilds:
        return wilds.get_dataset("poverty", root_dir=str(root / "wilds"), unlabeled=unlabeled, fold=fold)


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_an_official_fold(wilds_data: Path, bundles: Bundles, miniature: Miniature, seed: int) -> None:
    task, bundle = miniature("poverty"), bundles("poverty")
    split, private = task.split(bundle, seed), bundle.private()
    dataset, pool = stock(wilds_data, FOLDS[seed]), stock(wilds_data, FOLDS[seed], unlabeled=True)
    for ours, theirs in {"labeled": "train", **OFFICIAL}.items():
        subset, indices = dataset.get_subset(theirs), getattr(split, ours)
        assert len(subset) > 0
        np.testing.assert_array_equal(task.labels(private, indices), subset.metadata_array.numpy()[:, :3])
        np.testing.assert_array_equal(private["labels"][indices], subset.y_array.numpy())
    np.testing.assert_array_equal(split.labels, dataset.get_subset("train").y_array.numpy())
    assert split.labels.dtype == np.float32
    np.testing.assert_array_equal(split.labeled_domains, dataset.get_subset("train").metadata_array[:, 2].numpy())
    shown = pool.get_subset("test_unlabeled")
    np.testing.assert_array_equal(split.unlabeled_domains, shown.metadata_array[:, 2].numpy())
    assert set(split.unlabeled_domains) == set(dataset.get_subset("test").metadata_array[:, 2].tolist())


def test_there_is_no_other_seed(bundles: Bundles, miniature: Miniature) -> None:
    with pytest.raises(MethodError, match="seeds 0 to 4, its folds A to E, and no seed 5"):
        miniature("poverty").split(bundles("poverty"), 5)


def test_a_seed_of_tuning_is_the_fold_of_its_turn(bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature("poverty"), bundles("poverty")
    assert registry.get("task", "wilds-poverty").options["folds"] == len(FOLDS)
    for seed, fold in ((100, 0), (104, 4), (108, 3)):
        tuned, evaluated = task.split(bundle, seed), task.split(bundle, fold)
        for part in ("labeled", *OFFICIAL, "unlabeled", "labels"):
            np.testing.assert_array_equal(getattr(tuned, part), getattr(evaluated, part))


def test_what_chooses_for_a_fold_is_no_test_example_of_it_and_test_examples_of_others(
    bundles: Bundles, miniature: Miniature
) -> None:
    """Which is why each fold is tuned by itself."""
    task, bundle = miniature("poverty"), bundles("poverty")
    splits = [task.split(bundle, seed) for seed in range(5)]
    for own in splits:
        assert not np.intersect1d(own.test, np.concatenate([own.labeled, own.validation])).size
    first = np.concatenate([splits[0].labeled, splits[0].validation])
    assert all(np.intersect1d(first, other.test).size for other in splits[1:])


def test_nothing_that_reaches_a_method_knows_hidden_numbers(
    miniatures: Any, miniature: Miniature, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, first = miniature("poverty"), bundles("poverty")
    miniatures.poverty(tmp_path / "wilds", hidden=1)
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    second = miniature("poverty").build(Data(tmp_path))
    assert set(first.public()) == set(second.public) == {"paths"}
    np.testing.assert_array_equal(first.public()["paths"], second.public["paths"])
    split = task.split(first, 0)
    assert (first.private()["labels"][split.test] != second.private["labels"][split.test]).all()
    again = task.split(type("Folder", (), {"private": lambda self: second.private, "facts": second.facts})(), 0)
    for part in ("labeled", *OFFICIAL, "unlabeled", "labels", "labeled_domains", "unlabeled_domains"):
        np.testing.assert_array_equal(getattr(split, part), getattr(again, part))


def test_official_metrics_equal_their_definition(at_home: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature("poverty"), bundles("poverty")
    draw = np.random.default_rng(0)
    for seed in (0, 3):
        for part in OFFICIAL:
            metadata = task.labels(bundle.private(), getattr(task.split(bundle, seed), part))
            y, urban = metadata[:, 1], metadata[:, 0] == 1
            predicted = (0.5 * y + draw.normal(size=len(y))).astype(np.float32)
            scores = task.score(predicted[:, None], metadata)
            r = [np.corrcoef(predicted[group], y[group])[0, 1] for group in (urban, ~urban)]
            assert scores.metrics["worst_group_correlation"] == pytest.approx(min(r), abs=1e-5)
            assert scores.metrics["correlation"] == pytest.approx(np.corrcoef(predicted, y)[0, 1], abs=1e-5)
            assert scores.metrics["mean_squared_error"] == pytest.approx(np.mean((predicted - y) ** 2), abs=1e-5)
            assert sorted(scores.groups["correlation"].values()) == pytest.approx(sorted(r), abs=1e-5)


def test_numbers_that_do_not_vary_have_no_correlation(at_home: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature("poverty"), bundles("poverty")
    metadata = task.labels(bundle.private(), task.split(bundle, 0).test)
    for predicted in (np.zeros(len(metadata)), np.where(metadata[:, 0] == 1, metadata[:, 1], 0.3)):
        scores = task.score(predicted.astype(np.float32)[:, None], metadata)
        assert scores.metrics["worst_group_correlation"] == 0.0
        assert all(np.isfinite(value) for value in scores.metrics.values())


def test_a_run_and_its_files(at_home: Path, bundles: Bundles, miniature: Miniature, play: Callable[..., Any]) -> None:
    task, bundle = miniature("poverty"), bundles("poverty")
    outcome = play(Erm(), task, bundle, limit=150.0, seed=2)
    with np.load(outcome.predictions) as kept:
        numbers = dict(kept)
    assert set(numbers) == set(OFFICIAL)
    assert numbers["test"].dtype == np.float32
    metadata = task.labels(bundle.private(), task.split(bundle, 2).test)
    again = task.score(task.unpredicted(numbers["test"]), metadata)
    assert again.metrics == outcome.metrics
    assert "entropy" not in outcome.curve[-1].values
    files = task.submission(2, numbers)
    assert set(files) == {f"poverty/poverty_split:{split}_fold:C_pred.csv" for split in OFFICIAL.values()}
    lines = files["poverty/poverty_split:test_fold:C_pred.csv"].splitlines()
    assert [np.float32(ast.literal_eval(line)) for line in lines] == numbers["test"].tolist()


def test_methods_for_classes_do_not_fit() -> None:
    task = registry.get("task", "wilds-poverty")
    fitting = {name for name, method in registry.entries("method").items() if not misfit(method, task)}
    assert {"supervised", "erm", "erm-augment", "fixmatch", "noisy-student", "swav"} <= fitting
    reason = misfit(registry.get("method", "flexmatch"), task)
    assert (
        reason
        == "method 'flexmatch' works on models that return classes, that of task 'wilds-poverty' returns numbers."
    )


def test_numbers_of_the_weak_view_are_targets_whatever_the_threshold(
    at_home: Path, bundles: Bundles, miniature: Miniature
) -> None:
    """FixMatch as published on numbers: MSE(f(A(x)), y) + MSE(f(A(u)), f(a(u))), the latter without a gradient."""
    task = miniature("poverty")
    outputs, teacher = (torch.randn(5, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for threshold in (0.0, 1.0):
        loss = task.pseudo_label_loss(outputs, teacher, threshold)
        slow = sum((outputs[row, 0] - teacher[row, 0].item()) ** 2 for row in range(5)) / 5
        assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
        own, none = torch.autograd.grad(loss, (outputs, teacher), allow_unused=True)
        assert none is None
        torch.testing.assert_close(own, torch.autograd.grad(slow, outputs)[0], rtol=0, atol=1e-12)


def slow_blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """(C, H, W), pixel by pixel."""
    taps = np.arange(-11, 12)
    weights = np.exp(-0.5 * (taps / sigma) ** 2) / np.exp(-0.5 * (taps / sigma) ** 2).sum()
    for axis in (1, 2):
        padded = np.pad(picture, [(11, 11) if at == axis else (0, 0) for at in range(3)], mode="edge")
        n = picture.shape[axis]
        picture = sum(w * np.take(padded, range(k, k + n), axis=axis) for k, w in enumerate(weights))
    return picture


def test_crops_are_blurred_and_changed_each_by_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn(40, 8, 14, 14, generator=draw, dtype=torch.float64)
    sigma = torch.linspace(0.1, 2.0, 40, dtype=torch.float64)
    blurred = blur(pictures, sigma)
    for row in (0, 17, 39):
        expected = slow_blur(pictures[row].numpy(), float(sigma[row]))
        np.testing.assert_allclose(blurred[row].numpy(), expected, atol=1e-12)
    first, same, other = (crop_view(pictures, torch.Generator().manual_seed(s), (0.05, 0.14), 8) for s in (1, 1, 2))
    assert first.shape == (40, 8, 8, 8)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    # Bands that are no colours keep a constant value, whatever is cropped, blurred or coloured; colours do not.
    flat = torch.full((40, 8, 14, 14), 0.3, dtype=torch.float64)
    seen = crop_view(flat, torch.Generator().manual_seed(3), (0.14, 1.0))
    assert torch.allclose(seen[:, 3:], flat[:, 3:])
    changed = ((seen[:, :3] - 0.3).abs() > 1e-3).flatten(1).any(dim=1).float().mean()
    assert 0.6 < float(changed) < 1.0


@pytest.mark.parametrize("damage", ["torn", "shape", "nan", "gone"])
def test_a_picture_that_is_not_whole_is_named(
    miniatures: Any, miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    path = tmp_path / "wilds" / "picture.npz"
    path.parent.mkdir()
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    picture = np.full((8, 16, 16 if damage != "shape" else 15), np.nan if damage == "nan" else 0.0, np.float32)
    np.savez_compressed(path, x=picture)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:60])
    if damage == "gone":
        path.unlink()
    with pytest.raises(DataMissing) as caught:
        miniature("poverty").inputs({"paths": np.array([b"picture.npz"])}, np.array([0]))
    assert str(path) in str(caught.value)
    assert "Unpack the published archive again" in str(caught.value)


def test_the_published_network() -> None:
    net = WildsPoverty().model().eval()
    # torchvision's ResNet-18 with five more channels in the first layer and one output.
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_689_512 + 5 * 64 * 49 - 999 * 513
    with torch.no_grad():
        assert net(torch.zeros(1, 8, 64, 64)).shape == (1, 1)


def test_a_full_move_is_the_one_that_was_drawn() -> None:
    pictures = torch.arange(100.0).view(1, 1, 10, 10)
    still, yes, no = torch.zeros(5, 1), torch.tensor([True]), torch.tensor([False])
    assert torch.equal(move(pictures, still, no, no), pictures)
    assert torch.equal(move(pictures, still, yes, no), pictures.flip(3))
    assert torch.equal(move(pictures, still, no, yes), pictures.flip(2))
    shifted = move(pictures, torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])[:, None], no, no)
    assert torch.equal(shifted[..., :-1], pictures[..., 1:])
    assert not shifted[..., -1].any()


def test_colours_are_changed_and_standardised_again() -> None:
    colours = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    same = torch.full((4, 3), 0.5)
    torch.testing.assert_close(recolour(colours.clamp(-1, 1), same), colours.clamp(-1, 1), rtol=0, atol=1e-3)
    twice = recolour(colours.clamp(-1, 1), torch.tensor([[0.9], [0.5], [0.5], [0.5]]).expand(-1, 3))
    assert 0.5 < float((twice - colours.clamp(-1, 1)).mean()) < 3.0
    hidden = hide_square(colours, torch.full((3,), 0.5), torch.full((3,), 0.5), torch.zeros(3))
    assert ((hidden == 0).sum(dim=(1, 2, 3)) == 3 * 2 * 2).all() or ((hidden == 0).sum() > 0)
    assert torch.equal(hidden[:, :, 3:], colours[:, :, 3:])


def test_views_depend_on_the_generator_alone() -> None:
    pictures = torch.randn(8, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    for view in (weak_view, strong_view):
        first, same, other = (view(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert first.shape == pictures.shape
        assert first.isfinite().all()
    # Near-infrared pixels only move: those of the strong view are of the picture, or 0.
    moved = strong_view(pictures, torch.Generator().manual_seed(1))[:, 6]
    known = torch.cat([pictures[:, 6].flatten(1), torch.zeros(8, 1)], dim=1)
    assert all(torch.isin(a.flatten(), b).all() for a, b in zip(moved, known, strict=True))
