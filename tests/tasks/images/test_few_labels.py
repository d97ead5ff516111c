"""Tasks with few labels, built from miniatures in the published layouts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.protocols.adaptation import Split
from selfbench.tasks.images.cifar import Cifar10Few40, Cifar100Few400
from selfbench.tasks.images.cifar10_jpeg import Cifar10Jpeg, Cifar10Jpeg40, Cifar10Jpeg250, Cifar10Jpeg4000
from selfbench.tasks.images.eurosat import CLASSES, EuroSatFew20
from selfbench.tasks.images.few_labels import FewLabels
from selfbench.tasks.images.models.pooling import mean_over_pixels
from selfbench.tasks.images.models.small_resnet import SmallResNet
from selfbench.tasks.images.models.wide_resnet import WideResNet
from selfbench.tasks.images.stl10 import Stl10Few40
from selfbench.tasks.images.svhn import SvhnFew40

RNG = np.random.default_rng(0)
PUBLISHED = {
    "cifar10": (40, 250, 4000),
    "cifar100": (200, 400, 2500, 10000),
    "stl10": (40, 100, 250, 1000),
    "svhn": (40, 250, 1000),
    "eurosat": (20, 40),
}


class Folder(Data):
    """A data folder whose files need not have the published sizes and digests; what is missing is still named."""

    def file(self, name: str, member: str) -> Path:
        path = self.root / name / member
        return path if path.exists() else super().file(name, member)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    return Folder(tmp_path / "data")


def place(data: Data, name: str, member: str, content: bytes = b"") -> Path:
    path = data.root / name / member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pixels(n: int, side: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def classes(n: int, k: int = 10) -> np.ndarray:
    return RNG.permutation(np.arange(n) % k)


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def few(task: type[FewLabels], labels: int, validation: int, **more: object) -> FewLabels:
    return type("Few", (task,), {"n_labels": labels, "n_validation": validation, **more})()  # type: ignore[no-any-return]


def audited(task: FewLabels, folder: BundleFolder, seed: int = 0) -> Split:
    """A split that holds what the task promises."""
    split, labels = task.split(folder, seed), folder.private()["labels"]
    public, k = folder.public(), task.n_classes
    assert set(public) == {"images"}
    assert len(public["images"]) == len(labels)
    assert np.array_equal(split.labels, labels[split.labeled])
    for part, size in ((split.labeled, task.n_labels), (split.validation, task.n_validation)):
        assert np.array_equal(np.bincount(labels[part], minlength=k), np.full(k, size // k))
    assert len(split.validation) <= len(split.labeled)
    assert not np.intersect1d(split.validation, np.concatenate([split.labeled, split.unlabeled])).size
    known = np.concatenate([split.labeled, split.validation, split.unlabeled])
    assert np.array_equal(np.unique(known), np.arange(split.test[0]))
    assert np.array_equal(split.test, np.arange(split.test[0], len(labels)))
    assert bool(np.intersect1d(split.labeled, split.unlabeled).size) == task.labeled_in_pool
    x = task.inputs(public, split.labeled[:3])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal((255 * x).round().byte(), torch.from_numpy(np.array(public["images"][split.labeled[:3]])))
    assert task.weak(x, generator).shape == task.strong(x, generator).shape == x.shape
    assert task.model().eval()(x).shape == (3, k)
    again, other = task.split(folder, seed), task.split(folder, seed + 1)
    assert np.array_equal(again.labeled, split.labeled)
    assert not np.array_equal(other.labeled, split.labeled)
    return split


def parquet(path: Path, files: list[bytes], labels: np.ndarray) -> None:
    import pyarrow
    from pyarrow import parquet as format

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": None} for content in files]
    format.write_table(pyarrow.table({"img": images, "label": labels}), path)


@pytest.fixture
def jpegs(data: Data) -> tuple[list[bytes], np.ndarray]:
    files, labels = [jpeg(image) for image in pixels(70)], np.concatenate([classes(50), classes(20)])
    parquet(data.root / "cifar10-jpeg" / "train.parquet", files[:50], labels[:50])
    parquet(data.root / "cifar10-jpeg" / "test.parquet", files[50:], labels[50:])
    return files, labels


def test_cifar10_jpeg(data: Data, jpegs: tuple[list[bytes], np.ndarray], tmp_path: Path) -> None:
    files, labels = jpegs
    task = few(Cifar10Jpeg, 20, 10)
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    images = folder.public()["images"]
    assert all(np.array_equal(image, decoded(content)) for image, content in zip(images, files, strict=True))
    assert np.array_equal(folder.private()["labels"], labels)
    split = audited(task, folder)
    assert len(split.unlabeled) == 20
    assert len(split.test) == 20


def test_more_labels_hold_the_fewer_and_leave_the_validation(
    data: Data, jpegs: tuple[list[bytes], np.ndarray], tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "bundle", few(Cifar10Jpeg, 10, 10).build(data))
    one, two = (few(Cifar10Jpeg, labels, 10).split(folder, 3) for labels in (10, 30))
    assert set(one.labeled) < set(two.labeled)
    assert set(one.validation) == set(two.validation)
    with pytest.raises(DataMissing, match=r"Class \d has 5 .*in .*bundle; 5 labelled and 2 validation .*fewer labels"):
        few(Cifar10Jpeg, 50, 20).split(folder, 0)


def test_cifar10_jpeg_names_what_is_wrong(data: Data, jpegs: tuple[list[bytes], np.ndarray]) -> None:
    files, labels = jpegs
    train = data.root / "cifar10-jpeg" / "train.parquet"
    task = few(Cifar10Jpeg, 10, 10)
    parquet(train, [*files[:7], files[7][:300], *files[8:50]], labels[:50])
    with pytest.raises(DataMissing, match=r"train\.parquet, row 8 \(from 1\) is no whole image.*Get the file again"):
        task.build(data)
    parquet(train, files[:50], np.where(np.arange(50) == 4, 10, labels[:50]))
    with pytest.raises(DataMissing, match=r"train\.parquet, row 5 \(from 1\): class 10, expected 0 to 9"):
        task.build(data)
    parquet(train, files[:50], np.where(labels[:50] == 3, 2, labels[:50]))
    with pytest.raises(DataMissing, match=r"train\.parquet has no image of class 3"):
        task.build(data)
    train.write_bytes(train.read_bytes()[:-20])
    with pytest.raises(DataMissing, match=r"train\.parquet cannot be read"):
        task.build(data)
    train.unlink()
    with pytest.raises(DataMissing, match=r"train\.parquet is missing\.(?s:.*)By hand: put the file"):
        task.build(data)


@pytest.mark.parametrize(("task_class", "k", "heads"), [(Cifar10Few40, 10, 0), (Cifar100Few400, 100, 1)])
def test_cifar(data: Data, tmp_path: Path, task_class: type[FewLabels], k: int, heads: int) -> None:
    task = few(task_class, k, k, model=lambda self: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, k)))
    name, files = task.data, task.files  # type: ignore[attr-defined]
    images, labels = pixels(len(files) * 3 * k), np.concatenate([classes(3 * k, k) for _ in files])
    for number, file in enumerate(files):
        part = slice(number * 3 * k, (number + 1) * 3 * k)
        rows = zip(images[part], labels[part], strict=True)
        place(data, name, file, b"".join(bytes(heads) + bytes([label]) + image.tobytes() for image, label in rows))
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    assert np.array_equal(folder.public()["images"], images)
    assert np.array_equal(folder.private()["labels"], labels)
    split = audited(task, folder)
    assert len(split.test) == 3 * k
    last = data.root / name / files[-2]
    whole = last.read_bytes()
    last.write_bytes(whole[:-5])
    with pytest.raises(DataMissing, match=re.escape(f"{last.name}, row {3 * k} (from 1): ")):
        task.build(data)
    last.write_bytes(whole[: heads + 3073] + bytes(heads) + bytes([k]) + whole[2 * heads + 3074 :])
    with pytest.raises(DataMissing, match=rf"{last.name}, row 2 \(from 1\): class {k}, expected 0 to {k - 1}"):
        task.build(data)
    last.unlink()
    with pytest.raises(DataMissing, match=rf"{last.name} is missing(?s:.*)selfbench data fetch {name}"):
        task.build(data)


@pytest.fixture
def stl(data: Data) -> dict[str, np.ndarray]:
    parts = {"train": pixels(30, 96), "unlabeled": pixels(12, 96), "test": pixels(10, 96)}
    for name, images in parts.items():
        # As published: each channel column by column.
        place(data, "stl10", f"stl10_binary/{name}_X.bin", images.transpose(0, 1, 3, 2).tobytes())
    parts["labels"] = np.concatenate([classes(30), np.full(12, -1), classes(10)])
    place(data, "stl10", "stl10_binary/train_y.bin", (parts["labels"][:30] + 1).astype(np.uint8).tobytes())
    place(data, "stl10", "stl10_binary/test_y.bin", (parts["labels"][42:] + 1).astype(np.uint8).tobytes())
    return parts


def test_stl10(data: Data, stl: dict[str, np.ndarray], tmp_path: Path) -> None:
    task = few(Stl10Few40, 10, 10)
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    assert np.array_equal(folder.public()["images"], np.concatenate([stl["train"], stl["unlabeled"], stl["test"]]))
    assert np.array_equal(folder.private()["labels"], stl["labels"])
    split = audited(task, folder)
    assert set(range(30, 42)) < set(split.unlabeled)
    assert len(split.test) == 10
    place(data, "stl10", "stl10_binary/unlabeled_X.bin", stl["unlabeled"].tobytes()[:-1])
    with pytest.raises(DataMissing, match=r"unlabeled_X\.bin, row 12 \(from 1\): 27,647 bytes of 27,648"):
        task.build(data)
    place(data, "stl10", "stl10_binary/unlabeled_X.bin", stl["unlabeled"].tobytes())
    place(data, "stl10", "stl10_binary/train_y.bin", bytes([1, 2]))
    with pytest.raises(DataMissing, match=r"train_y\.bin has 2 classes for 30 images"):
        task.build(data)
    place(data, "stl10", "stl10_binary/train_y.bin", bytes([1] * 29 + [0]))
    with pytest.raises(DataMissing, match=r"train_y\.bin, row 30 \(from 1\): class -1"):
        task.build(data)


def test_svhn(data: Data, tmp_path: Path) -> None:
    task = few(SvhnFew40, 10, 10)
    images, labels = pixels(60), np.concatenate([classes(20), classes(20), classes(20)])

    def save(name: str, part: slice) -> None:
        shown = {"X": images[part].transpose(2, 3, 1, 0), "y": np.where(labels[part] == 0, 10, labels[part])[:, None]}
        path = place(data, "svhn", f"{name}_32x32.mat")
        savemat(path, shown, do_compression=True)

    for number, name in enumerate(("train", "extra", "test")):
        save(name, slice(20 * number, 20 * (number + 1)))
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    assert np.array_equal(folder.public()["images"], images)
    assert np.array_equal(folder.private()["labels"], labels)
    split = audited(task, folder)
    assert len(split.test) == 20
    assert not task.flip
    extra = data.root / "svhn" / "extra_32x32.mat"
    extra.write_bytes(extra.read_bytes()[:2000])
    with pytest.raises(DataMissing, match=r"extra_32x32\.mat is no whole MATLAB file"):
        task.build(data)
    savemat(extra, {"X": images.transpose(2, 3, 1, 0), "y": labels[:7]})
    with pytest.raises(DataMissing, match=r"extra_32x32\.mat holds uint8 \(32, 32, 3, 60\) and 7 classes"):
        task.build(data)
    labels[20] = 12
    save("extra", slice(20, 40))
    with pytest.raises(DataMissing, match=r"extra_32x32\.mat, row 1 \(from 1\): class 12"):
        task.build(data)


def test_eurosat(data: Data, tmp_path: Path) -> None:
    task = few(EuroSatFew20, 10, 10, expected=50)
    flat = {}
    for number, name in enumerate(CLASSES):
        for index in range(1, 6):
            level = 20 * number + index
            content = jpeg(np.full((3, 64, 64), level, np.uint8))
            flat[place(data, "eurosat", f"2750/{name}/{name}_{index}.jpg", content)] = level
    folder = write_bundle(tmp_path / "bundle", task.build(data))
    split = audited(task, folder)
    images, labels = folder.public()["images"], folder.private()["labels"]
    assert images.shape == (50, 3, 32, 32)
    levels = images.reshape(50, -1).mean(axis=1).round().astype(int)
    assert np.all(abs(levels - 20 * labels - 3) <= 3)
    # The last fifth of each class, by name.
    assert np.all(levels[split.test] - 20 * labels[split.test] >= 4)
    assert len(split.test) == 10
    x = torch.arange(32.0).view(1, 1, 32, 1).expand(200, 3, 32, 32) / 32
    views = task.weak(x, torch.Generator().manual_seed(0))
    turned = (views[:, 0, 8, 0] > views[:, 0, 24, 0]).sum()
    assert 60 < turned < 140
    torn = data.root / "eurosat" / "2750" / "River" / "River_3.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(DataMissing, match=r"River_3\.jpg is no whole image"):
        task.build(data)
    torn.unlink()
    with pytest.raises(DataMissing, match=r"holds 49 images, expected 50"):
        task.build(data)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_are_registered(name: str) -> None:
    for labels in PUBLISHED[name]:
        entry = registry.get("task", f"{name}-{labels}")
        task = entry.load()()
        assert task.n_labels == labels
        assert task.n_validation <= labels
        assert task.n_labels % task.n_classes == task.n_validation % task.n_classes == 0
        # 2^20 steps of 64 + 2 * 448 images, forward 1 and backward 2.
        assert entry.options["budget"]["limit"] == 2**20 * (64 + 2 * 448) * 3
        assert "gpu" in entry.options["tags"]
        assert task.recipe.lr == 0.03
        assert task.recipe.batch_size == 64
        assert task.recipe.weight_decay == (1e-3 if name == "cifar100" else 5e-4)


def test_cifar10_jpeg_is_for_processors() -> None:
    for task_class, labels in ((Cifar10Jpeg40, 40), (Cifar10Jpeg250, 250), (Cifar10Jpeg4000, 4000)):
        entry = registry.get("task", f"cifar10-jpeg-{labels}")
        assert entry.load() is task_class
        assert task_class.n_labels == labels
        assert not entry.options["tags"]


@pytest.mark.parametrize(
    ("make", "parameters", "side"),
    [
        (lambda: WideResNet(28, 2, 10), 1_467_626, 32),
        (lambda: WideResNet(28, 8, 100), 23_401_028, 32),
        (lambda: WideResNet(28, 2, 10, stages=4, first_stride=2), 5_929_450, 96),
        (lambda: SmallResNet(10), 261_730, 32),
    ],
)
def test_networks_have_the_stated_sizes(make: Callable[[], torch.nn.Module], parameters: int, side: int) -> None:
    model = make().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    logits = model(torch.rand(2, 3, side, side))
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("shape", [(32, 96, 4, 4), (7, 10, 3, 5), (1, 64, 1, 1)])
def test_pooling_is_the_mean_and_its_gradient_is_channels_last(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    mine, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(shape[:2], generator=torch.Generator().manual_seed(1))
    pooled, mean = mean_over_pixels(mine), plain.mean(dim=(2, 3))
    assert torch.equal(pooled, mean)
    seen: list[torch.Tensor] = []
    mine.register_hook(seen.append)
    (pooled * weights).sum().backward()
    (mean * weights).sum().backward()
    assert torch.equal(mine.grad, plain.grad)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_wide_resnet_is_that_of_an_independent_loop() -> None:
    """WRN-10-1 written out: every layer by name, in the order of the authors' code."""
    torch.manual_seed(0)
    model = WideResNet(10, 1, 3).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)

    def act(bn: torch.nn.BatchNorm2d, v: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        normal = (v - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
        normal = normal * bn.weight.view(shape) + bn.bias.view(shape)
        return torch.where(normal > 0, normal, 0.1 * normal)

    conv = torch.nn.functional.conv2d
    y = conv(x, model.conv1.weight, model.conv1.bias, padding=1)
    for number, stride in enumerate((1, 2, 2)):
        block = model.blocks[number]
        first = act(block.bn1, y)
        inner = conv(first, block.conv1.weight, stride=stride, padding=1)
        inner = conv(act(block.bn2, inner), block.conv2.weight, padding=1)
        # 16 channels stay 16 in the first stage of width 1, so that its shortcut is the input itself.
        y = inner + (y if number == 0 else conv(y, block.shortcut.weight, stride=stride))
    expected = act(model.bn, y).mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
    wide = WideResNet(10, 2, 3).double().eval()
    block = wide.blocks[0]
    y = torch.rand(2, 16, 8, 8, dtype=torch.float64)
    first = act(block.bn1, y)
    inner = conv(act(block.bn2, conv(first, block.conv1.weight, padding=1)), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(y), inner + conv(first, block.shortcut.weight), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="depth"):
        WideResNet(11, 1, 3)
