"""The tasks on cifar10-jpeg-c: their orders, a miniature build, and (slow) the real one."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.suite.pretrain import check_gate
from selfbench.suite.protocols.stream import StreamTask
from selfbench.suite.scoring import label_correlation
from selfbench.tasks.streams import cifar10_jpeg_c as module
from selfbench.tasks.streams.cifar10_jpeg_c import BASE, FEW, STEP, Cifar10JpegCContinual
from selfbench.tasks.streams.cifar10_jpeg_c_gn import Cifar10JpegCGNContinual
from selfbench.tasks.streams.common_corruptions import FROST_PICTURES, NAMES, corrupt
from selfbench.tasks.streams.posterior import swag_diagonal
from selfbench.tasks.streams.source_models import RESNET20

NETWORKS = ("cifar10-jpeg-c-", "cifar10-jpeg-c-gn-")
TASKS = [name for name in registry.entries("task") if name.startswith(NETWORKS[0])]
SEVERE = len(NAMES) * BASE
ROWS = SEVERE + BASE + len(NAMES) * 4 * STEP


def task_of(name: str) -> StreamTask:
    task: StreamTask = registry.get("task", name).load()()
    return task


def where(row: int) -> tuple[int, int, int]:
    """Corruption, severity and base image of a row of `images`, as documented; a clean one has severity 0."""
    if row < SEVERE:
        return row // BASE, 5, row % BASE
    row -= SEVERE
    if row < BASE:
        return -1, 0, row
    corruption, rest = divmod(row - BASE, 4 * STEP)
    level, image = divmod(rest, STEP)
    return corruption, level + 1, level * STEP + image


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """A bundle of classes alone: orders need no more."""
    base = np.random.default_rng(0).integers(0, 10, BASE)
    labels = np.array([base[where(row)[2]] for row in range(ROWS)])
    return write_bundle(tmp_path_factory.mktemp("bare") / "bundle", Bundle({}, {"labels": labels}))


def test_all_orders_are_there() -> None:
    orders = {"continual", "mixed", "class-sorted", "correlated", "gradual", "recurring", "long", "reset", "bs1"}
    assert {name.removeprefix(NETWORKS[0]) for name in TASKS if "-gn-" not in name} == orders
    assert {name.removeprefix(NETWORKS[1]) for name in TASKS if "-gn-" in name} < orders


@pytest.mark.parametrize("name", TASKS)
def test_streams_follow_the_seed_and_end_with_the_clean_base(name: str, bare: BundleFolder) -> None:
    task = task_of(name)
    stream = task.stream(bare, 0)
    assert stream.sha256 == task.stream(bare, 0).sha256 != task.stream(bare, 1).sha256
    assert stream.domain_names == NAMES
    assert [where(row) for row in stream.after] == [(-1, 0, image) for image in range(BASE)]
    budget = registry.get("task", name).options["budget"]
    assert budget["limit"] == 100 * len(stream.indices) + 500_000
    for row, domain in zip(stream.indices[::97], stream.domains[::97], strict=True):
        assert where(row)[0] == domain
    sizes = np.diff(stream.cuts)
    assert set(sizes) == {1 if name.endswith("bs1") else 200}


@pytest.mark.parametrize("name", [name for name in TASKS if "-gn-" in name])
def test_both_networks_meet_the_same_streams(name: str, bare: BundleFolder) -> None:
    twin = name.replace("-gn", "")
    assert task_of(name).stream(bare, 3).sha256 == task_of(twin).stream(bare, 3).sha256
    options, others = (registry.get("task", item).options for item in (name, twin))
    assert options["budget"] == others["budget"]
    assert set(others["grants"]) - set(options["grants"]) == {"batch-norm"}


@pytest.mark.parametrize("order", ["continual", "mixed", "class-sorted", "correlated", "reset"])
def test_every_image_comes_once_under_each_corruption_at_severity_5(order: str, bare: BundleFolder) -> None:
    stream = task_of(f"cifar10-jpeg-c-{order}").stream(bare, 0)
    assert np.array_equal(np.sort(stream.indices), np.arange(SEVERE))


def test_orders_have_the_correlation_of_their_names(bare: BundleFolder) -> None:
    found = {}
    for order in ("continual", "mixed", "class-sorted", "correlated"):
        stream = task_of(f"cifar10-jpeg-c-{order}").stream(bare, 0)
        found[order] = label_correlation(bare.private()["labels"][stream.indices])
    assert abs(found["continual"]) < 0.02
    assert abs(found["mixed"]) < 0.02
    assert found["class-sorted"] > 0.88
    assert 0.3 < found["correlated"] < 0.85


def test_resets_come_before_each_corruption(bare: BundleFolder) -> None:
    stream = task_of("cifar10-jpeg-c-reset").stream(bare, 0)
    assert list(stream.cuts[stream.resets]) == [BASE * number for number in range(1, len(NAMES))]
    assert len(task_of("cifar10-jpeg-c-continual").stream(bare, 0).resets) == 0


def test_gradual_rises_and_falls_and_keeps_images_to_a_severity(bare: BundleFolder) -> None:
    stream = task_of("cifar10-jpeg-c-gradual").stream(bare, 0)
    steps = [where(row) for row in stream.indices]
    expected = [(number, level) for number in range(15) for level in (1, 2, 3, 4, 5, 4, 3, 2, 1)]
    assert [step[:2] for step in steps[::STEP]] == expected
    levels: dict[int, set[int]] = {}
    for _, level, image in steps:
        levels.setdefault(image, set()).add(level)
    assert len(levels) == 5 * STEP
    assert all(len(found) == 1 for found in levels.values())


@pytest.mark.parametrize(("order", "images", "rounds"), [("recurring", FEW, 10), ("long", BASE, 10), ("bs1", FEW, 1)])
def test_rounds_repeat_the_same_images(order: str, images: int, rounds: int, bare: BundleFolder) -> None:
    stream = task_of(f"cifar10-jpeg-c-{order}").stream(bare, 0)
    assert len(stream.indices) == 15 * images * rounds
    first = np.sort(stream.indices[: 15 * images])
    assert all(where(row)[2] < images for row in first)
    for number in range(1, rounds):
        part = stream.indices[number * 15 * images : (number + 1) * 15 * images]
        assert np.array_equal(np.sort(part), first)
        assert not np.array_equal(part, stream.indices[: 15 * images])


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.bn(x).mean(dim=(2, 3)))
        return logits


class Folder(Data):
    """A data folder whose files need not be the published ones."""

    def file(self, name: str, member: str) -> Path:
        path = self.root / name / member
        return path if path.exists() else super().file(name, member)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Parquet files of twelve images, five frost pictures, a tiny source model; four images in the base."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    root = tmp_path / "data"
    for folder in ("cifar10-jpeg", "models", "frost-pictures"):
        (root / folder).mkdir(parents=True)
    for part in ("train", "test"):
        rows = [
            {"bytes": encoded(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8), "PNG"), "path": None}
            for _ in range(12)
        ]
        table = pyarrow.table({"img": rows, "label": draw.integers(0, 10, 12)})
        parquet.write_table(table, root / "cifar10-jpeg" / f"{part}.parquet")
    for name in FROST_PICTURES:
        picture = draw.integers(0, 256, (300, 300, 3), dtype=np.uint8)
        (root / "frost-pictures" / name).write_bytes(encoded(picture, "PNG" if name.endswith("png") else "JPEG"))
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), root / "models" / "tiny.pt")
    source = dataclasses.replace(
        RESNET20, architecture=Tiny, file="tiny.pt", sha256="", clean_error=(0.0, 1.0), channels_last=False
    )
    for cls in (module.Cifar10JpegC, Cifar10JpegCGNContinual):
        monkeypatch.setattr(cls, "source", source)
        monkeypatch.setattr(cls, "clean_error", (0.0, 1.0))
    for name, value in (("BASE", 10), ("SOURCE", 5), ("STEP", 2)):
        monkeypatch.setattr(module, name, value)
    real = module.swag_diagonal
    monkeypatch.setattr(module, "swag_diagonal", lambda *given, **named: real(*given, **named, batch_size=2, every=1))
    return Folder(root)


def test_a_bundle_holds_every_corruption_the_clean_base_and_the_source(miniature: Data, tmp_path: Path) -> None:
    task = Cifar10JpegCContinual()
    folder = write_bundle(tmp_path / "bundle", task.build(miniature))
    check_gate(task, folder.facts)
    public, labels = folder.public(), folder.private()["labels"]
    images = public["images"]
    assert images.shape == (15 * 10 + 10 + 15 * 4 * 2, 3, 32, 32)
    assert images.dtype == np.uint8
    base = torch.from_numpy(np.array(images[150:160]))
    ids = torch.arange(10)
    for number in (0, 5, 14):
        expected = corrupt(base, ids, NAMES[number], 5)
        assert np.array_equal(images[number * 10 : number * 10 + 10], expected.numpy())
        for severity in (1, 4):
            part = slice(2 * (severity - 1), 2 * severity)
            start = 160 + number * 8 + (severity - 1) * 2
            expected = corrupt(base[part], ids[part], NAMES[number], severity)
            assert np.array_equal(images[start : start + 2], expected.numpy())
            assert np.array_equal(labels[start : start + 2], labels[150:160][part])
        assert np.array_equal(labels[number * 10 : number * 10 + 10], labels[150:160])
    assert public["source_images"].shape == (5, 3, 32, 32)
    assert public["source_labels"].shape == (5,)
    assert public["posterior_mean"].shape == public["posterior_variance"].shape == (46,)
    shown = task.images(public, np.array([3, 150, 3]))
    assert shown.dtype == torch.float32
    assert torch.equal(shown[1] * 255, base[0].float())
    assert torch.equal(shown[0], shown[2])
    assert torch.equal(
        task.source_images(public, np.array([4]))[0] * 255, torch.tensor(public["source_images"][4]).float()
    )
    model = task.model()
    model.load_state_dict(folder.model())
    assert model.eval()(shown).shape == (3, 10)


def test_the_network_with_group_norm_has_a_posterior_and_equal_images(miniature: Data) -> None:
    plain, other = Cifar10JpegCContinual().build(miniature), Cifar10JpegCGNContinual().build(miniature)
    assert set(plain.public) == set(other.public)
    for name in ("images", "source_images", "source_labels"):
        assert np.array_equal(plain.public[name], other.public[name])


def test_two_builds_are_equal_to_the_byte(miniature: Data, tmp_path: Path) -> None:
    first, second = (write_bundle(tmp_path / str(n), Cifar10JpegCContinual().build(miniature)) for n in range(2))
    assert first.sha256 == second.sha256


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"resnet20-cifar10-jpeg\.safetensors is missing") as caught:
        Cifar10JpegCContinual().build(Data(tmp_path))
    assert "1,094,488 bytes" in str(caught.value)


def swag_by_hand(model: nn.Module, pixels: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Three plain SGD steps over one batch of all images, no augmentation or decay; moments of the last two."""
    x, y = torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels)
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    kept = []
    model.train()
    for step in range(3):
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient, speed in zip(model.parameters(), gradients, velocity, strict=True):
                speed.mul_(0.9).add_(gradient)
                parameter.sub_(0.1 * speed)
        if step >= 1:
            kept.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double())
    stacked = torch.stack(kept)
    return stacked.mean(0).numpy(), stacked.var(0, correction=0).numpy()


def test_the_posterior_gathers_the_moments_of_sgd() -> None:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8), draw.integers(0, 10, 6)
    torch.manual_seed(0)
    model = Tiny().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mean, variance = swag_diagonal(
        model, pixels, labels, seed=0, epochs=3, batch_size=6, lr=0.1, weight_decay=0.0, burn_in=0.34, every=1,
        augment=lambda images, generator: images,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected_mean, expected_variance = swag_by_hand(model, pixels, labels)
    assert mean == pytest.approx(expected_mean, abs=1e-6)
    assert variance == pytest.approx(expected_variance, abs=1e-7)
    assert variance.max() > 1e-5


@pytest.mark.slow
def test_the_real_source_errors(tmp_path: Path) -> None:
    """The source errors that these tasks had when they were made, nine corruptions as measured apart from this code.

    The posterior of the network with group norm lies around its weights.
    """
    data = Data(data_folder())
    for name in registry.get("task", "cifar10-jpeg-c-continual").options["data"]:
        if not data.present(name):
            pytest.skip(f"data set '{name}' is not below $SELFBENCH_DATA ({data.root})")
    task = Cifar10JpegCGNContinual()
    folder = write_bundle(tmp_path / "gn", task.build(data))
    model = task.model()
    model.load_state_dict(folder.model())
    model.eval()
    public, labels = folder.public(), folder.private()["labels"]
    nine = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "brightness", "contrast",
            "pixelate", "jpeg_compression")  # fmt: skip
    wrong = []
    with torch.no_grad():
        for name in nine:
            rows = NAMES.index(name) * BASE + np.arange(BASE)
            logits = torch.cat([model(task.images(public, part)) for part in np.split(rows, 10)])
            wrong.append(float((logits.argmax(1).numpy() != labels[rows]).mean()))
    assert np.mean(wrong) == pytest.approx(0.32, abs=0.03)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy()
    mean, variance = public["posterior_mean"], public["posterior_variance"]
    assert mean.shape == variance.shape == weights.shape
    assert np.isfinite(mean).all()
    assert variance.max() > 0
    assert np.linalg.norm(mean - weights) < 0.2 * np.linalg.norm(weights)
