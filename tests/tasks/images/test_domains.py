"""Domain adaptation in folders, from miniatures in the published layout."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from selfbench.methods.alignment.dann import Dann
from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.prepare import decoded
from selfbench.suite.prepare.decoded_option import Decoded
from selfbench.suite.protocols.adaptation import EVALUATED
from selfbench.suite.suites import misfit
from selfbench.tasks.images import domainnet, office_home, pacs, vlcs
from selfbench.tasks.images.domain_views import crop, photograph_view, turn_hue
from selfbench.tasks.images.domains import DomainAdaptation

K, PER_CLASS = 3, 10
MODULES = (pacs, vlcs, office_home, domainnet)
REGISTERED = {
    entry.name: entry
    for entry in registry.entries("task").values()
    if entry.module in {module.__name__ for module in MODULES}
}


def miniature(name: str, **changes: Any) -> DomainAdaptation:
    """The registered task with three classes, small pictures and a small network."""
    published = REGISTERED[name].load()
    changes = {
        "n_classes": K, "sizes": (), "side": 16, "evaluation_batch": 16, "model": _small_network,
        "recipe": dataclasses.replace(published.recipe, batch_size=6, points=2),
    } | changes  # fmt: skip
    return type(f"Small{published.__name__}", (published,), changes)()  # type: ignore[no-any-return]


def _small_network(self: DomainAdaptation) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, self.n_classes),
    )  # fmt: skip


def fill(root: Path, task: DomainAdaptation, seed: int = 0) -> None:
    """`PER_CLASS` pictures of noise in each class of each domain."""
    draw = np.random.default_rng(seed)
    for domain in task.domains:
        for kind in "abc":
            folder = root / task.data_name / domain / kind
            folder.mkdir(parents=True)
            for number in range(PER_CLASS):
                pixels = draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a miniature of each data set."""
    root = tmp_path_factory.mktemp("domains")
    for name in ("pacs-to-photo", "vlcs-to-labelme", "office-home-to-art", "domainnet-to-sketch"):
        fill(root, miniature(name))
    return root


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFBENCH_DATA", str(home))
    return home


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature of PACS, to be damaged."""
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    fill(tmp_path, miniature("pacs-to-photo"))
    return tmp_path / "pacs"


def built(task: DomainAdaptation, root: Path, folder: Path) -> BundleFolder:
    return write_bundle(folder, task.build(Data(root)))


def test_the_tasks_are_those_of_the_four_data_sets() -> None:
    assert len(REGISTERED) == 37
    for name, entry in REGISTERED.items():
        task = entry.load()
        assert set(task.target_domains) < set(task.domains)
        assert not set(task.target_domains) & set(task.source_domains)
        assert ("-to-" in name) == (len(task.target_domains) == 1)
        assert entry.options["bundle"] == f"{task.data_name}-adaptation"
        assert {"domains", "strong-augmentation"} <= set(entry.options["grants"])
        if task.sizes:
            assert len(task.sizes) == len(task.domains)
        # The budget is the published number of steps of the baseline: three passes an example.
        if task.data_name != "domainnet":
            sources = len(task.source_domains or task.domains) - len(task.target_domains) * (not task.source_domains)
            assert entry.options["budget"]["limit"] == 5000 * 3 * task.recipe.batch_size == 5000 * 3 * 32 * sources
        else:  # 25 epochs over the four fifths of the 172,947 photographs that are labelled.
            assert entry.options["budget"]["limit"] == 25 * 3 * (172_947 - round(0.2 * 172_947))


@pytest.mark.parametrize("module", MODULES)
def test_every_domain_is_a_target_of_all_others_and_a_source_for_all_others(module: types.ModuleType) -> None:
    tasks = {name: entry.load() for name, entry in REGISTERED.items() if entry.module == module.__name__}
    domains = next(iter(tasks.values())).domains
    left_out = sorted(task.target_domains for task in tasks.values() if not task.source_domains)
    assert left_out == sorted((domain,) for domain in domains)
    single = sorted(task.source_domains for name, task in tasks.items() if "-from-" in name)
    assert single == sorted((domain,) for domain in domains)
    for name, task in tasks.items():
        if "-from-" in name:
            assert {*task.source_domains, *task.target_domains} == set(domains)


@pytest.mark.parametrize("name", REGISTERED)
def test_splits_keep_domains_and_parts_apart(at_home: Path, tmp_path: Path, name: str) -> None:
    task = miniature(name)
    folder = built(task, at_home, tmp_path / "bundle")
    split, other, private = task.split(folder, 0), task.split(folder, 1), folder.private()
    sources = [
        task.domains.index(domain) for domain in task.source_domains or set(task.domains) - set(task.target_domains)
    ]
    targets = [task.domains.index(domain) for domain in task.target_domains]
    of = {part: getattr(split, part) for part in ("labeled", "unlabeled", *EVALUATED)}
    for part, domains in (("labeled", sources), ("source_validation", sources), ("unlabeled", targets),
                          ("validation", targets), ("test", targets)):  # fmt: skip
        assert set(private["domains"][of[part]]) == set(domains)
        assert part.endswith("validation") or set(private["labels"][of[part]]) == set(range(K))
    assert len(np.unique(np.concatenate(list(of.values())))) == sum(map(len, of.values()))
    n = K * PER_CLASS
    assert [len(of[part]) for part in of] == [
        24 * len(sources), 12 * len(targets), 15 * len(targets), 3 * len(targets), n // 5 * len(sources), 0,
    ]  # fmt: skip
    np.testing.assert_array_equal(split.labels, private["labels"][split.labeled])
    np.testing.assert_array_equal(split.labeled_domains, private["domains"][split.labeled])
    np.testing.assert_array_equal(split.unlabeled_domains, private["domains"][split.unlabeled])
    np.testing.assert_array_equal(split.test, other.test)
    assert not np.array_equal(split.unlabeled, other.unlabeled)
    assert not np.array_equal(split.labeled, other.labeled)


def test_pictures_are_those_of_the_folders(at_home: Path, tmp_path: Path) -> None:
    task = miniature("office-home-to-art")
    folder = built(task, at_home, tmp_path / "bundle")
    private, chosen = folder.private(), np.array([0, 40, 119])
    images = task.inputs(folder.public(), chosen)
    assert images.shape == (3, 3, 16, 16)
    for image, row in zip(images, chosen, strict=True):
        domain, kind = task.domains[private["domains"][row]], "abc"[private["labels"][row]]
        same = 0
        for path in (at_home / "office-home" / domain / kind).iterdir():
            with Image.open(path) as opened:
                resized = np.asarray(opened.resize((16, 16), Image.Resampling.BILINEAR)) / 255
            same += np.allclose(image.permute(1, 2, 0).numpy(), resized, atol=1e-6)
        assert same == 1


def test_a_run_on_pictures_that_are_kept_decoded_is_the_same(
    at_home: Path, tmp_path: Path, play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random crops, among the views, are made after the cache; where all are kept, none is decoded in the run."""
    task = miniature("pacs-to-photo")
    folder = built(task, at_home, tmp_path / "bundle")
    public, pictures = folder.public(), folder.facts["pictures"]
    assert pictures == 4 * K * PER_CLASS
    parts = {}
    for rows in (50, pictures):
        kept = decoded.DecodedFolder(tmp_path / f"decoded-{rows}", Decoded(pictures, (3, 16, 16)))
        decoded.fill(kept, lambda chosen: task.decoded(public, chosen), rows)
        parts[rows] = types.SimpleNamespace(public=functools.partial(decoded.read_decoded, kept.path))

    def run(*source: Any) -> Any:
        return play(Supervised(augment="strong"), task, folder, limit=300.0, source=source)

    plain, some = run(), run(parts[50])
    monkeypatch.setattr(type(task), "decoded", None)
    whole = run(parts[pictures])
    assert plain.predictions_sha256 == some.predictions_sha256 == whole.predictions_sha256


def test_nothing_public_tells_a_class(at_home: Path, tmp_path: Path) -> None:
    """Neither names nor the order: in the folders' order, neighbours would be of one class."""
    folder = built(miniature("pacs-to-photo"), at_home, tmp_path / "bundle")
    assert set(folder.public()) == {"encoded", "offsets"}
    assert b"photo" not in folder.public()["encoded"].tobytes()
    labels, domains = (folder.private()[name] for name in ("labels", "domains"))
    for domain in range(4):
        own = labels[domains == domain]
        assert 0.1 < (own[1:] == own[:-1]).mean() < 0.6


@pytest.mark.parametrize("name", ["pacs-to-photo", "domainnet-from-real"])
@pytest.mark.parametrize("method", [Supervised(augment="strong"), Dann()], ids=["supervised", "dann"])
def test_a_run_from_end_to_end(at_home: Path, tmp_path: Path, play: Callable[..., Any], name: str, method: Any) -> None:
    task = miniature(name)
    folder = built(task, at_home, tmp_path / "bundle")
    outcome = play(method, task, folder, limit=300.0)
    groups = outcome.groups["error"]
    expected = set(task.target_domains) if len(task.target_domains) > 1 else {"0", "1", "2"}
    assert set(groups) == expected
    assert outcome.metrics["worst_group_error"] == max(groups.values()) >= outcome.metrics["error"]
    assert {"source_validation", "validation"} <= set(outcome.curve[-1].values)


FITTING = [
    method
    for method in registry.entries("method").values()
    if registry.PACKAGE in method.file.parents and not misfit(method, REGISTERED["pacs-from-photo"])
]


@pytest.mark.parametrize("method", FITTING, ids=[method.name for method in FITTING])
def test_every_method_that_fits_runs(
    at_home: Path, tmp_path: Path, play: Callable[..., Any], method: registry.Entry
) -> None:
    task = miniature("pacs-from-photo")
    folder = built(task, at_home, tmp_path / "bundle")
    outcome = play(method.load()(**method.params()), task, folder, limit=700.0, name=method.name)
    assert 0.0 <= outcome.metrics["error"] <= 1.0


def test_worst_is_a_domain_where_there_are_several_and_a_class_where_not() -> None:
    task = miniature("pacs-from-photo")
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    several = task.score(logits, np.array([[0, 1], [0, 1], [2, 2], [0, 3]]))
    assert several.groups["error"] == {"art_painting": 0.5, "cartoon": 0.0, "sketch": 0.0}
    assert several.metrics["worst_group_error"] == 0.5
    single = task.score(logits, np.array([[0, 1], [0, 1], [2, 1], [0, 1]]))
    assert single.groups["error"] == {"0": pytest.approx(1 / 3), "2": 0.0}


def refused(root: Path, *expected: str, **changes: Any) -> None:
    with pytest.raises(DataMissing) as caught:
        miniature("pacs-to-photo", **changes).build(Data(root.parent))
    for text in expected:
        assert text in str(caught.value)


def test_what_is_missing_is_named_with_its_remedy(own: Path, tmp_path: Path) -> None:
    shutil.move(own / "sketch", tmp_path / "away")
    refused(own, f"{own / 'sketch'} is missing", f"at {own / 'sketch'}", "PACS.zip", "sketchx.eecs.qmul.ac.uk")
    shutil.move(tmp_path / "away", own / "sketch")
    refused(own, f"{own / 'photo'} holds 30 images, expected 1,670", "Unpack", sizes=(1670, 2048, 2344, 3929))
    refused(own, f"{own / 'photo'} has 3 class folders, expected 7", n_classes=7)
    shutil.move(own / "cartoon" / "b", own / "cartoon" / "bee")
    refused(own, f"{own / 'cartoon'} and {own / 'photo'} do not have the same classes", "2 folders (b, bee)")


def test_a_torn_picture_is_named_with_its_remedy_before_a_run(own: Path, tmp_path: Path) -> None:
    path = own / "photo" / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    refused(own, f"{path} is no whole image", "Get the file again")
    assert not list((tmp_path / "cache").rglob(".decoding-*"))


def test_the_published_network_takes_the_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match=r"resnet50-0676ba61\.pth is missing"):
        pacs.PacsToPhoto().model()


def test_a_crop_is_the_part_that_was_drawn() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40).contiguous()
    # An area of 0.7 + 0.3 draw with sides of ratio 1 (draw 1/2), at the left end.
    draw = torch.tensor([[0.0], [0.5], [0.0], [0.5]])
    side = 0.7**0.5
    part = crop(ramp, draw, torch.tensor([False]))
    width = 40 / 39 * side
    assert float(part[0, 0, 0].diff()[5:-5].mean()) == pytest.approx(width / 40, rel=1e-3)
    assert float(part[0, 0, 0, 0]) < 0.01
    assert float(part[0, 0, 0, -1]) == pytest.approx(side, abs=0.02)
    torch.testing.assert_close(crop(ramp, draw, torch.tensor([True])), part.flip(3))


def test_the_hue_turns_around_grey() -> None:
    images = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor([0.7, 0.0])
    turned = turn_hue(images, angle)
    torch.testing.assert_close(turned[1], images[1], rtol=0, atol=1e-5)
    assert (turned[0] - images[0]).abs().max() > 0.05
    torch.testing.assert_close(turn_hue(turned, -angle), images, rtol=0, atol=1e-5)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(turn_hue(grey, angle), grey, rtol=0, atol=2e-3)


def test_views_depend_on_the_generator_alone() -> None:
    images = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    first, same, other = (photograph_view(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 1.0
    grey = (first - first.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-2
    assert 1 <= int(grey.sum()) <= 16
