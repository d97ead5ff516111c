"""The tasks on published data sets, built from miniatures in their layouts with small networks in the models' place."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, GateError
from selfbench.suite.needs import SOURCE_PARTS
from selfbench.suite.pretrain import check_gate
from selfbench.suite.protocols.stream import Stream, StreamTask
from selfbench.suite.run.outcome import Outcome
from selfbench.suite.suites import misfit
from selfbench.tasks.streams import ccc, cifar_c, domain_sets, imagenet, imagenet_timm
from selfbench.tasks.streams.models.bottleneck_resnet import BottleneckResNet
from selfbench.tasks.streams.models.resnext_cifar import CifarResNeXt
from selfbench.tasks.streams.models.wide_resnet import WideResNet
from selfbench.tasks.streams.source_models import SourceModel

RNG = np.random.default_rng(0)
FAMILIES = ("cifar10-c-", "cifar100-c-", "imagenet-", "ccc-", "domainnet-126-", "pacs-", "vlcs-")


class Tiny(nn.Module):
    """A classifier with batch norm and a linear layer called `fc`."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.bn(x).mean(dim=(2, 3)))
        return logits


class Folder(Data):
    """A data folder whose files need not have the published sizes; what is missing is still named."""

    def file(self, name: str, member: str) -> Path:
        path = self.root / name / member
        return path if path.exists() else super().file(name, member)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    return Folder(tmp_path / "data")


def save(data: Data, name: str, file: str, n_classes: int, source: SourceModel | None = None) -> SourceModel:
    """A source model of random weights, and its file; every clean error passes its gate."""
    path = data.root / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(Tiny(n_classes).state_dict(), path)
    made = SourceModel("tiny", lambda: Tiny(n_classes), name, file, "", (0.5,) * 3, (0.5,) * 3, n_classes, (0.0, 1.0))
    return made if source is None else dataclasses.replace(source, architecture=made.architecture, sha256="")


def picture(path: Path, side: int = 12) -> np.ndarray:
    """A random PNG under the name of the layout; uint8 (3, side, side)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return pixels.transpose(2, 0, 1)


def built(task: StreamTask, data: Data, tmp_path: Path) -> BundleFolder:
    bundle = task.build(data)
    folder = write_bundle(tmp_path / "bundle", bundle)
    check_gate(task, folder.facts)
    model = task.model()
    model.load_state_dict(folder.model())
    public = folder.public()
    assert model.eval()(task.images(public, np.arange(2))).shape == (2, task.n_classes)
    assert not list((tmp_path / "cache" / "bundles").glob(".decoding-*"))
    return folder


def consistent(task: StreamTask, folder: BundleFolder) -> Stream:
    """A stream of the task whose every index has an image and a class."""
    stream = task.stream(folder, 0)
    n = len(folder.public()["images"])
    assert len(folder.private()["labels"]) == n
    assert max(stream.indices.max(), stream.after.max(initial=0)) < n
    assert set(stream.after).isdisjoint(stream.indices)
    return stream


@pytest.fixture
def cifar(data: Data, monkeypatch: pytest.MonkeyPatch) -> tuple[Data, np.ndarray]:
    """CIFAR-10-C with ten images, those of corruption c at severity s of grey level 50 (s - 1) + c; and its classes."""
    labels = RNG.integers(0, 10, 10)
    root = data.root / "cifar10-c" / "CIFAR-10-C"
    root.mkdir(parents=True)
    np.save(root / "labels.npy", np.tile(labels, 5))
    for number, name in enumerate(cifar_c.NAMES):
        levels = np.repeat(50 * np.arange(5) + number, 10).astype(np.uint8)
        np.save(root / f"{name}.npy", np.broadcast_to(levels[:, None, None, None], (50, 32, 32, 3)).copy())
    clean = data.root / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin"
    clean.parent.mkdir(parents=True)
    clean.write_bytes(b"".join(bytes([label]) + bytes([255]) * 3072 for label in labels))
    for number in range(5):
        rows = [bytes([label]) + RNG.integers(0, 256, 3072, dtype=np.uint8).tobytes() for label in range(10)]
        clean.with_name(f"data_batch_{number + 1}.bin").write_bytes(b"".join(rows))
    monkeypatch.setattr(cifar_c.Cifar10C, "source", save(data, "source-models", "cifar10-standard.pt", 10))
    monkeypatch.setattr(cifar_c.Cifar10C, "clean_error", (0.0, 1.0))
    monkeypatch.setattr(cifar_c.Cifar10C, "n", 10)
    monkeypatch.setattr(cifar_c, "BATCH_SIZE", 4)
    return data, labels


@pytest.mark.parametrize(
    ("task_class", "length", "severities"),
    [
        (cifar_c.Cifar10CContinual, 150, {5}),
        (cifar_c.Cifar10CClassSorted, 150, {5}),
        (cifar_c.Cifar10CReset, 150, {5}),
        (cifar_c.Cifar10CMixed, 150, {5}),
        (cifar_c.Cifar10CCorrelated, 150, {5}),
        (cifar_c.Cifar10CRecurring, 1500, {5}),
        (cifar_c.Cifar10CGradual, 1350, {1, 2, 3, 4, 5}),
    ],
)
def test_cifar_c_streams_show_the_named_corruption_at_the_named_severity(
    cifar: tuple[Data, np.ndarray], tmp_path: Path, task_class: type[StreamTask], length: int, severities: set[int]
) -> None:
    data, labels = cifar
    task = task_class()
    folder = built(task, data, tmp_path)
    stream = consistent(task, folder)
    assert len(stream.indices) == length
    images = folder.public()["images"]
    for name in (0, 7, 14):
        shown = stream.indices[stream.domains == stream.domain_names.index(cifar_c.NAMES[name])]
        levels = images[shown].reshape(len(shown), -1)
        assert np.all(levels == levels[:, :1])
        assert {int(level - name) // 50 + 1 for level in levels[:, 0]} == severities
        assert np.all((levels[:, 0].astype(int) - name) % 50 == 0)
        assert np.array_equal(folder.private()["labels"][shown], labels[shown % 10])
    assert np.all(images[stream.after] == 255)
    assert np.array_equal(folder.private()["labels"][stream.after], labels)


def test_cifar_c_names_a_missing_corruption_and_classes_that_do_not_fit(cifar: tuple[Data, np.ndarray]) -> None:
    data, labels = cifar
    root = data.root / "cifar10-c" / "CIFAR-10-C"
    (root / "fog.npy").unlink()
    with pytest.raises(DataMissing, match=r"fog\.npy is missing") as caught:
        cifar_c.Cifar10CContinual().build(data)
    for part in ("selfbench data fetch cifar10-c", "(2.9 GB)", "https://zenodo.org/records/2535967"):
        assert part in str(caught.value)
    np.save(root / "labels.npy", np.tile((labels + 1) % 10, 5))
    with pytest.raises(DataMissing, match=r"labels\.npy does not hold the classes of the clean test images"):
        cifar_c.Cifar10CContinual().build(data)


@pytest.fixture
def cifar100(data: Data, monkeypatch: pytest.MonkeyPatch) -> Data:
    """CIFAR-100-C with ten images, laid out as `cifar` does it."""
    labels = RNG.integers(0, 100, 10)
    root = data.root / "cifar100-c" / "CIFAR-100-C"
    root.mkdir(parents=True)
    np.save(root / "labels.npy", np.tile(labels, 5))
    for number, name in enumerate(cifar_c.NAMES):
        levels = np.repeat(50 * np.arange(5) + number, 10).astype(np.uint8)
        np.save(root / f"{name}.npy", np.broadcast_to(levels[:, None, None, None], (50, 32, 32, 3)).copy())
    for part, fine in (("test", labels), ("train", np.arange(100))):
        file = data.root / "cifar100" / "cifar-100-binary" / f"{part}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join(bytes([0, label]) + bytes([label]) * 3072 for label in fine))
    monkeypatch.setattr(cifar_c.Cifar100C, "source", save(data, "source-models", "cifar100-augmix-resnext.pt", 100))
    monkeypatch.setattr(cifar_c.Cifar100C, "clean_error", (0.0, 1.0))
    monkeypatch.setattr(cifar_c.Cifar100C, "n", 10)
    return data


@pytest.mark.parametrize(
    ("task_class", "levels"),
    [
        (cifar_c.Cifar100CClassSorted, [5]),
        (cifar_c.Cifar100CRecurring, [5] * 10),
        (cifar_c.Cifar100CGradual, [1, 2, 3, 4, 5, 4, 3, 2, 1]),
    ],
)
def test_cifar100_c_steps_through_severities_and_rounds(
    cifar100: Data, tmp_path: Path, task_class: type[StreamTask], levels: list[int]
) -> None:
    task = task_class()
    folder = built(task, cifar100, tmp_path)
    stream = consistent(task, folder)
    shown = folder.public()["images"][stream.indices][:, 0, 0, 0].astype(int) - stream.domains
    assert np.all(shown % 50 == 0)
    steps = shown.reshape(-1, 10) // 50 + 1
    assert np.all(steps == steps[:, :1])
    rounds = steps[:, 0].reshape(10, 15).T if len(levels) == 10 else steps[:, 0].reshape(15, len(levels))
    assert rounds.tolist() == [levels] * 15
    labels = folder.private()["labels"][stream.indices].reshape(-1, 10)
    assert bool(np.all(np.diff(labels, axis=1) >= 0)) == (levels == [5])
    made = write_bundle(tmp_path / "source", task.build_source(cifar100)).public()
    assert list(made["source_labels"]) == list(range(100))
    assert np.array_equal(made["source_images"][:, 0, 0, 0], np.arange(100))


def posterior_of(task: StreamTask, folder: BundleFolder, source: BundleFolder, tmp_path: Path) -> BundleFolder:
    """The posterior's bundle, checked: finite, as many as the model has parameters, and around its weights."""
    made = write_bundle(tmp_path / "posterior", task.build_posterior(folder, source))
    mean, variance = made.public()["posterior_mean"], made.public()["posterior_variance"]
    model = task.model()
    model.load_state_dict(folder.model())
    weights = torch.cat([parameter.flatten() for parameter in model.parameters()]).detach().numpy()
    assert mean.shape == variance.shape == weights.shape
    assert np.abs(mean - weights).max() < 0.5
    assert not np.array_equal(mean, weights)
    assert np.all(variance >= 0)
    assert variance.max() > 0
    return made


SHORT = {
    "eata": {"fisher_images": 20, "fisher_batch": 10},
    "petal": {},
    "note": {"source_steps": 2, "interval": 16, "capacity": 16},
    "rmt-replay": {"warmup_images": 20, "source_batch": 10},
    "vida-pretrained": {"pretrain_steps": 2, "source_batch": 10, "high_rank": 16},
}
"""Every stream method that needs more of the source than its weights, made short."""
SMALL: dict[str, dict[str, Any]] = {"memo": {"views": 4}, "cotta": {"views": 4}, "visual-prompt": {"side": 4}}
"""Methods that take many views, or a prompt larger than a miniature's pictures: less of it."""

OTHERS = [
    entry.name
    for entry in registry.entries("method").values()
    if registry.PACKAGE / "methods" in entry.file.parents
    and entry.protocol == "stream"
    and not set(SOURCE_PARTS) & set(entry.options["needs"])
]


def test_no_stream_method_with_source_data_is_left_out() -> None:
    methods = [entry for entry in registry.entries("method").values() if entry.protocol == "stream"]
    found = {entry.name for entry in methods if set(SOURCE_PARTS) & set(entry.options["needs"])}
    assert found == SHORT.keys()


def run_short(
    name: str, task: StreamTask, folder: BundleFolder, source: list[BundleFolder], play: Callable[..., Outcome]
) -> Outcome:
    """The method with the preset of the task, made short."""
    entry, options = registry.get("method", name), type(task).__selfbench__  # type: ignore[attr-defined]
    assert not misfit(entry, registry.get("task", options["name"]))
    method = entry.load()(**entry.params({**SHORT, **SMALL}.get(name), options["preset"]))
    return play(method, task, folder, limit=1e6, source=source)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_method_runs_on_cifar_c(
    cifar: tuple[Data, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[..., Outcome],
    name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(cifar_c, "BATCH_SIZE", 50)
    task = cifar_c.Cifar10CContinual()
    outcome = run_short(name, task, built(task, cifar[0], tmp_path), [], play)
    assert (outcome.n, len(outcome.groups["error"])) == (150, 15)
    assert np.isfinite(outcome.metrics["nll"])


def test_source_data_of_cifar_c_are_the_training_images(
    cifar: tuple[Data, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[..., Outcome]
) -> None:
    data, _ = cifar
    monkeypatch.setattr(cifar_c, "BATCH_SIZE", 50)
    monkeypatch.setattr(cifar_c, "POSTERIOR_SHOWN", 100)
    monkeypatch.setattr(cifar_c, "POSTERIOR_BATCH", 5)
    task = cifar_c.Cifar10CContinual()
    folder = built(task, data, tmp_path)
    assert set(folder.public()) == {"images"}
    source = write_bundle(tmp_path / "source", task.build_source(data))
    images, labels = source.public()["source_images"], source.public()["source_labels"]
    raw = b"".join((data.root / f"cifar10/cifar-10-batches-bin/data_batch_{n}.bin").read_bytes() for n in range(1, 6))
    rows = np.frombuffer(raw, np.uint8).reshape(50, 3073)
    assert np.array_equal(images.reshape(50, -1), rows[:, 1:])
    assert list(labels) == list(rows[:, 0])
    assert torch.equal(task.source_images(source.public(), np.array([7]))[0] * 255, torch.tensor(images[7]).float())
    posterior = posterior_of(task, folder, source, tmp_path)
    for name in SHORT:
        assert run_short(name, task, folder, [source, posterior], play).n == 150


CLASSES = ("n01", "n02", "n03", "n04")


@pytest.fixture
def imagenet_folder(data: Data, monkeypatch: pytest.MonkeyPatch) -> tuple[Data, dict[str, np.ndarray]]:
    """ImageNet's layouts with four classes of two images; pixels by data set and path."""
    monkeypatch.setattr(imagenet, "CLASSES", 4)
    monkeypatch.setattr(imagenet, "PER_CLASS", 2)
    monkeypatch.setattr(imagenet.ImageNetStream, "batch_size", 3)
    for module in (imagenet, ccc):
        monkeypatch.setattr(module, "SIDE", 12)
        monkeypatch.setattr(module, "RESIZE", 12)
    monkeypatch.setattr(imagenet, "torchvision_net", lambda name, n_classes=4: Tiny(n_classes))
    made = dataclasses.replace(save(data, "torchvision-models", "r.pth", 4), resize=12)
    monkeypatch.setattr(imagenet.ImageNetStream, "source", made)
    monkeypatch.setattr(imagenet.ImageNetStream, "clean_error", (0.0, 1.0))
    monkeypatch.setattr(imagenet.ImageNetStream, "n_classes", 4)
    monkeypatch.setattr(ccc, "RESNET50", made)
    monkeypatch.setattr(ccc.CCCMedium, "clean_error", (0.0, 1.0))
    names = [f"{name}/v_{number}.JPEG" for name in CLASSES for number in range(2)]
    pixels = {f"imagenet/val/{name}": picture(data.root / "imagenet" / "val" / name) for name in names}
    for part, corruptions in (("imagenet-c", imagenet.NAMES), ("imagenet-3dcc", imagenet.NAMES_3D)):
        for corruption in corruptions:
            for name in names:
                path = f"{part}/{corruption}/5/{name}"
                pixels[path] = picture(data.root / path)
    for part in ("imagenet-r", "imagenet-a"):
        for name in CLASSES[1:3]:
            pixels[f"{part}/{part}/{name}/x.jpg"] = picture(data.root / part / part / name / "x.jpg", 12)
        for name, value in (("n_classes", 2), ("expected", 2)):
            monkeypatch.setattr(imagenet.ImageNetR if part.endswith("r") else imagenet.ImageNetA, name, value)
    monkeypatch.setattr(imagenet, "SOURCE_PER_CLASS", 3)
    for name in CLASSES:
        for number in range(5):
            path = f"imagenet/train/{name}/{name}_{number}.JPEG"
            pixels[path] = picture(data.root / path)
    ids = data.root / "imagenet-5k-ids" / "imagenet_test_image_ids.txt"
    ids.parent.mkdir(parents=True)
    ids.write_text("n03/v_1.JPEG\nn01/v_0.JPEG\n")
    return data, pixels


@pytest.mark.parametrize(
    ("task_class", "part", "per_domain"),
    [
        (imagenet.ImageNetC5kContinual, "imagenet-c", 2),
        (imagenet.ImageNetC5kMixed, "imagenet-c", 2),
        (imagenet.ImageNetC5kClassSorted, "imagenet-c", 2),
        (imagenet.ImageNetC50kClassSorted, "imagenet-c", 8),
        (imagenet.ImageNetC50kReset, "imagenet-c", 8),
        (imagenet.ImageNetC50kCorrelated, "imagenet-c", 8),
        (imagenet.ImageNet3DCC5k, "imagenet-3dcc", 2),
    ],
)
def test_imagenet_c_streams_show_the_named_corruption_at_severity_5(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]],
    tmp_path: Path,
    task_class: type[StreamTask],
    part: str,
    per_domain: int,
) -> None:
    data, pixels = imagenet_folder
    task = task_class()
    folder = built(task, data, tmp_path)
    stream = consistent(task, folder)
    public, labels = folder.public()["images"], folder.private()["labels"]
    names = imagenet.NAMES if part == "imagenet-c" else imagenet.NAMES_3D
    assert set(stream.domain_names) == set(names)
    for number, corruption in enumerate(stream.domain_names):
        shown = stream.indices[stream.domains == number]
        assert len(shown) == per_domain
        expected = {
            value.tobytes(): CLASSES.index(path.split("/")[3])
            for path, value in pixels.items()
            if path.startswith(f"{part}/{corruption}/5/")
        }
        assert [expected[public[index].tobytes()] for index in shown] == list(labels[shown])
    clean = [pixels[f"imagenet/val/{name}"] for name in ("n03/v_1.JPEG", "n01/v_0.JPEG")]
    assert np.array_equal(public[stream.after], np.stack(clean))
    assert list(labels[stream.after]) == [2, 0]


def test_imagenet_c_recurs(imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path) -> None:
    data, _ = imagenet_folder
    task = imagenet.ImageNetC5kRecurring()
    stream = consistent(task, built(task, data, tmp_path))
    assert np.bincount(stream.indices).tolist() == [10] * 30
    assert stream.domains.tolist() == np.tile(np.repeat(np.arange(15), 2), 10).tolist()


def test_imagenet_c_rises_and_falls(imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path) -> None:
    data, pixels = imagenet_folder
    for corruption in imagenet.NAMES:
        for severity in range(1, 5):
            for name in ("n03/v_1.JPEG", "n01/v_0.JPEG"):
                path = f"imagenet-c/{corruption}/{severity}/{name}"
                pixels[path] = picture(data.root / path)
    place = {value.tobytes(): path.split("/") for path, value in pixels.items() if path.startswith("imagenet-c/")}
    task = imagenet.ImageNetC5kGradual()
    folder = built(task, data, tmp_path)
    stream = consistent(task, folder)
    public, labels = folder.public()["images"], folder.private()["labels"]
    shown = [place[public[index].tobytes()] for index in stream.indices]
    assert [int(path[2]) for path in shown] == [level for level in (1, 2, 3, 4, 5, 4, 3, 2, 1) for _ in range(2)] * 15
    assert [path[1] for path in shown] == [stream.domain_names[domain] for domain in stream.domains]
    assert stream.domain_names == imagenet.NAMES
    assert [CLASSES.index(path[3]) for path in shown] == list(labels[stream.indices])


@pytest.mark.parametrize(
    ("task_class", "own"),
    [(imagenet.ImageNetC5kContinual, CLASSES), (imagenet.ImageNetR, CLASSES[1:3]), (ccc.CCCMedium, CLASSES)],
)
def test_source_data_of_imagenet_are_the_first_training_images_of_each_class(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path, task_class: type[StreamTask],
    own: tuple[str, ...],
) -> None:  # fmt: skip
    data, pixels = imagenet_folder
    made = write_bundle(tmp_path / "source", task_class().build_source(data)).public()
    shown = {image.tobytes(): label for image, label in zip(made["source_images"], made["source_labels"], strict=True)}
    expected = {
        pixels[f"imagenet/train/{name}/{name}_{number}.JPEG"].tobytes(): label
        for label, name in enumerate(own)
        for number in range(3)
    }
    assert shown == expected
    assert list(made["source_labels"]) != sorted(made["source_labels"]), "in an order of their own"


def test_methods_with_source_data_run_on_imagenet(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    play: Callable[..., Outcome],
) -> None:  # fmt: skip
    data, _ = imagenet_folder
    monkeypatch.setattr(imagenet, "POSTERIOR_SHOWN", 100)
    monkeypatch.setattr(imagenet, "POSTERIOR_BATCH", 4)
    task = imagenet.ImageNetC5kReset()
    folder = built(task, data, tmp_path)
    source = write_bundle(tmp_path / "source", task.build_source(data))
    posterior = posterior_of(task, folder, source, tmp_path)
    for name in SHORT:
        assert run_short(name, task, folder, [source, posterior], play).n == 30


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_method_runs_on_imagenet(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path, play: Callable[..., Outcome], name: str
) -> None:
    task = imagenet.ImageNetC5kReset()
    outcome = run_short(name, task, built(task, imagenet_folder[0], tmp_path), [], play)
    assert (outcome.n, len(outcome.groups["error"])) == (30, 15)
    assert np.isfinite(outcome.metrics["nll"])


def test_source_data_of_imagenet_are_never_validation_images(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    data, _ = imagenet_folder
    train = data.root / "imagenet" / "train"
    task = imagenet.ImageNetC5kContinual()
    shutil.copy(data.root / "imagenet" / "val" / "n02" / "v_0.JPEG", train / "n02" / "a_name_of_its_own.JPEG")
    with pytest.raises(DataMissing, match=r"a_name_of_its_own\.JPEG is the validation image v_0\.JPEG"):
        task.build_source(data)
    shutil.rmtree(train / "n02")
    with pytest.raises(DataMissing, match=r"train/n02 holds 0 images, expected 3 or more") as caught:
        task.build_source(data)
    assert "ILSVRC2012_img_train.tar" in str(caught.value)
    shutil.rmtree(train)
    assert task.build(data).public, "all other methods do without them"
    with pytest.raises(DataMissing, match=r"imagenet/train is missing"):
        task.build_source(data)


@pytest.mark.parametrize("task_class", [imagenet.ImageNetR, imagenet.ImageNetA])
def test_a_subset_of_classes_keeps_its_rows_of_the_classifier(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path, task_class: type[StreamTask]
) -> None:
    data, _ = imagenet_folder
    task = task_class()
    folder = built(task, data, tmp_path)
    stream = consistent(task, folder)
    assert sorted(folder.private()["labels"][stream.indices]) == [0, 1]
    whole = imagenet.ImageNetStream.source.load(data)
    part = task.model()
    part.load_state_dict(folder.model())
    images = task.images(folder.public(), stream.indices)
    assert torch.allclose(part.eval()(images), whole(images)[:, [1, 2]])


def test_imagenet_c_image_by_image(imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path) -> None:
    task = registry.get("task", "imagenet-c-5k-reset-bs1").load()()
    stream = consistent(task, built(task, imagenet_folder[0], tmp_path))
    assert list(stream.cuts) == list(range(31))
    assert list(stream.resets) == list(range(2, 30, 2))


def tiny_vit() -> nn.Module:
    """timm's own ViT-Base with its twelve blocks, narrow, on small pictures."""
    from timm import create_model

    net: nn.Module = create_model(
        "vit_base_patch16_224", img_size=12, patch_size=6, embed_dim=16, num_heads=2, num_classes=4
    )
    return net


def tiny_resnet_gn() -> nn.Module:
    """timm's own ResNet-50 with group norm, narrow, with one block a stage."""
    from timm import create_model

    net: nn.Module = create_model("resnet50_gn", layers=(1, 1, 1, 1), channels=(64, 64, 64, 64), num_classes=4)
    return net


TIMM: dict[str, tuple[type[imagenet_timm.TimmStream], Callable[[], nn.Module], str]] = {
    "vit": (imagenet_timm.ViT, tiny_vit, "w.safetensors"),
    "resnet50-gn": (imagenet_timm.ResNet50GN, tiny_resnet_gn, "w.pth"),
}


@pytest.fixture(params=TIMM)
def timm_folder(
    request: pytest.FixtureRequest, imagenet_folder: tuple[Data, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Data, str]:
    """Miniature ImageNet, and weights of one of timm's networks as its publisher saves them."""
    pytest.importorskip("timm", reason="timm is not installed: pip install 'selfbench[timm]'")
    data, _ = imagenet_folder
    owner, net, file = TIMM[request.param]
    (data.root / "timm-models").mkdir()
    torch.manual_seed(0)
    weights = net().state_dict()
    (save_file if file.endswith("safetensors") else torch.save)(weights, data.root / "timm-models" / file)
    changes = {"architecture": net, "file": file, "sha256": "", "n_classes": 4, "clean_error": (0.0, 1.0), "resize": 12}
    monkeypatch.setattr(owner, "source", dataclasses.replace(owner.source, **changes))
    monkeypatch.setattr(owner, "clean_error", (0.0, 1.0))
    return data, request.param


def test_the_orders_of_the_wild_settings(timm_folder: tuple[Data, str], tmp_path: Path) -> None:
    data, model = timm_folder
    task = registry.get("task", f"imagenet-c-5k-{model}-reset").load()()
    folder = built(task, data, tmp_path)
    assert folder.facts["weights_sha256"] == task.source.digest(data)
    found = {}
    for order in ("reset", "continual", "mixed", "imbalanced", "reset-bs1"):
        entry = registry.get("task", f"imagenet-c-5k-{model}-{order}")
        assert entry.options["bundle"] == f"imagenet-c-5k-{model}"
        found[order] = consistent(entry.load()(), folder)
    parts = {name: (len(stream.indices), len(stream.cuts) - 1, len(stream.resets)) for name, stream in found.items()}
    assert parts == {
        "reset": (30, 15, 14), "continual": (30, 10, 0), "mixed": (30, 10, 0), "imbalanced": (60, 30, 14),
        "reset-bs1": (30, 30, 14),
    }  # fmt: skip
    assert np.any(np.diff(found["mixed"].domains) < 0)
    labels = folder.private()["labels"][found["imbalanced"].indices].reshape(15, 2, 2)
    assert np.mean(labels[..., 0] == labels[..., 1]) > 0.9
    for order in ("reset", "mixed", "imbalanced", "reset-bs1"):
        whole = registry.get("task", f"imagenet-c-50k-{model}-{order}")
        assert whole.options["bundle"] == f"imagenet-c-50k-{model}"


def test_every_fitting_method_runs_on_timm_models(
    timm_folder: tuple[Data, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[..., Outcome]
) -> None:
    data, model = timm_folder
    monkeypatch.setattr(imagenet, "POSTERIOR_SHOWN", 100)
    monkeypatch.setattr(imagenet, "POSTERIOR_BATCH", 4)
    monkeypatch.setattr(imagenet.ImageNetStream, "batch_size", 10)
    entry = registry.get("task", f"imagenet-c-5k-{model}-continual")
    task = entry.load()()
    folder = built(task, data, tmp_path)
    source = write_bundle(tmp_path / "source", task.build_source(data))
    posterior = posterior_of(task, folder, source, tmp_path)
    every = [*OTHERS, *SHORT]
    refused = {name for name in every if "batch-norm" in registry.get("method", name).options["needs"]}
    assert {name for name in every if misfit(registry.get("method", name), entry)} == refused
    assert {"tent", "eata", "sar", "deyo", "memo", "roid", "cotta"} <= set(every) - refused
    for name in set(every) - refused:
        outcome = run_short(name, task, folder, [source, posterior] if name in SHORT else [], play)
        assert outcome.n == 30
        assert np.isfinite(outcome.metrics["nll"]), name


def test_rates_of_the_wild_settings() -> None:
    """SAR's release: 2.5e-4 for a ResNet and 1e-3 for a ViT at batches of 64, in proportion for a ViT and twice that
    for a ResNet below 32; SAR and DeYO twice as much at single images."""
    for name in ("tent", "eta", "eata", "sar", "deyo"):
        twice = 2 if name in ("sar", "deyo") else 1
        expected = {
            "vit-reset": 1e-3, "vit-mixed": 1e-3, "vit-imbalanced": 1e-3, "vit-reset-bs1": twice * 1e-3 / 64,
            "resnet50-gn-reset": 2.5e-4, "resnet50-gn-imbalanced": 2.5e-4,
            "resnet50-gn-reset-bs1": twice * 2 * 2.5e-4 / 64, "reset-bs1": twice * 2 * 2.5e-4 / 64,
        }  # fmt: skip
        for task, lr in expected.items():
            preset = registry.get("task", f"imagenet-c-50k-{task}").options["preset"]
            given = registry.get("method", name).params(preset=preset)
            assert given["lr"] == pytest.approx(lr), (name, task)
            assert given.get("optimizer", "sgd") == "sgd"
            assert given.get("plpd", 0.2) == 0.2
            assert given.get("d_margin", 0.05) == 0.05


def test_imagenet_names_what_is_missing(imagenet_folder: tuple[Data, dict[str, np.ndarray]]) -> None:
    data, _ = imagenet_folder
    (data.root / "imagenet-c" / "snow" / "5" / "n01" / "v_0.JPEG").unlink()
    with pytest.raises(DataMissing, match=r"1 listed file .*snow/5/n01/v_0\.JPEG"):
        imagenet.ImageNetC5kContinual().build(data)
    with pytest.raises(DataMissing, match=r"snow/5 holds 7 images, expected 8"):
        imagenet.ImageNetC50kContinual().build(data)


def test_ccc_keeps_the_order_of_its_shards(
    imagenet_folder: tuple[Data, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = imagenet_folder
    frames = RNG.integers(0, 256, (3, 5, 12, 12, 3), dtype=np.uint8)
    for of_stream, name_of_stream in zip(frames, ccc.STREAMS, strict=True):
        folder = data.root / "ccc" / name_of_stream
        folder.mkdir(parents=True)
        with tarfile.open(folder / "serial_00000.tar", "w") as archive:
            for number, frame in enumerate(of_stream):
                content = io.BytesIO()
                Image.fromarray(frame).save(content, "PNG")
                for name, part in (("input.jpg", content.getvalue()), ("output.cls", str(number % 4).encode())):
                    info = tarfile.TarInfo(f"s{number}.{name}")
                    info.size = len(part)
                    archive.addfile(info, io.BytesIO(part))
    task = ccc.CCCMedium()
    with monkeypatch.context() as inner:
        inner.setattr(ccc, "written", lambda shape, fill: fill(np.zeros((5, *shape[1:]), np.uint8)))
        with pytest.raises(DataMissing, match="seed_43 holds 5 frames of 100,000: add the next shards"):
            task.build(data)
    for name, value in (("frames", 4), ("per_domain", 2), ("n_classes", 4), ("clean_error", (0.0, 1.0))):
        monkeypatch.setattr(ccc.CCCMedium, name, value)
    bundle = built(task, data, tmp_path)
    images, labels = bundle.public()["images"], bundle.private()["labels"]
    for seed in range(4):
        stream = task.stream(bundle, seed)
        assert list(stream.domains) == [0, 0, 1, 1]
        assert np.array_equal(images[stream.indices], frames[seed % 3, :4].transpose(0, 3, 1, 2))
        assert list(labels[stream.indices]) == [0, 1, 2, 3]
    consistent(task, bundle)
    assert task.stream(bundle, 0).sha256 == task.stream(bundle, 3).sha256 != task.stream(bundle, 1).sha256


class _Small:
    n_classes: ClassVar[int] = 2
    clean_error: ClassVar[tuple[float, float]] = (0.0, 1.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_sets, "SIDE", 12)
    monkeypatch.setattr(domain_sets, "RESIZE", (12, 12))
    monkeypatch.setattr(domain_sets, "shift", lambda images, generator, pixels: images)
    monkeypatch.setattr(domain_sets, "check_digest", lambda path, sha256: None)
    monkeypatch.setattr(domain_sets, "torchvision_net", lambda name, n_classes=1000: Tiny(n_classes))


@pytest.mark.parametrize(
    ("task_class", "name"),
    [(domain_sets.PACS, "pacs"), (domain_sets.VLCS, "vlcs"), (domain_sets.DomainNet126, "domainnet-126")],
)
def test_domains_come_in_turn_and_the_source_domain_after_them(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None, task_class: type, name: str,
    play: Callable[..., Outcome],
) -> None:  # fmt: skip
    for attribute in ("n_classes", "clean_error"):
        monkeypatch.setattr(task_class, attribute, getattr(_Small, attribute))
    task = task_class()
    pixels: dict[bytes, tuple[str, int]] = {}
    domains = (task.source_domain, *task.targets)
    for domain in domains:
        lines = []
        for number in range(80 if domain == task.source_domain else 3):
            label = number % 2
            path = f"{domain}/{('cat', 'dog')[label]}/{domain}_{number}.jpg"
            pixels[picture(data.root / name / path).tobytes()] = (domain, label)
            lines.append(f"{path} {label}\n")
        if name == "domainnet-126":
            (data.root / name / f"{domain}_list.txt").write_text("".join(lines))
    if name == "domainnet-126":
        made = save(data, "source-models", "domainnet-126-real.pth", 2, domain_sets.DOMAINNET126_REAL)
        monkeypatch.setattr(
            domain_sets, "DOMAINNET126_REAL", dataclasses.replace(made, n_classes=2, clean_error=(0, 1))
        )
    else:
        save(data, "torchvision-models", "resnet18-f37072fd.pth", 1000)
    folder = built(task, data, tmp_path)
    stream = consistent(task, folder)
    public, labels = folder.public()["images"], folder.private()["labels"]
    assert stream.domain_names == task.targets
    for index, domain in zip(stream.indices, stream.domains, strict=True):
        assert pixels[public[index].tobytes()] == (task.targets[domain], labels[index])
    assert len(stream.indices) == 9
    assert {pixels[public[index].tobytes()][0] for index in stream.after} == {task.source_domain}
    assert [pixels[public[index].tobytes()][1] for index in stream.after] == list(labels[stream.after])
    assert len(stream.after) == 16
    held = {public[index].tobytes() for index in stream.after}
    source = write_bundle(tmp_path / "source", task.build_source(data))
    images, own = source.public()["source_images"], source.public()["source_labels"]
    assert len({image.tobytes() for image in images} - held) == len(images) == 64
    assert [pixels[image.tobytes()] for image in images] == [(task.source_domain, label) for label in own]
    monkeypatch.setattr(domain_sets, "POSTERIOR_SHOWN", 160)
    monkeypatch.setattr(domain_sets, "POSTERIOR_BATCH", 8)
    posterior = posterior_of(task, folder, source, tmp_path)
    assert posterior.facts["images"] == 64
    for method in SHORT:
        assert run_short(method, task, folder, [source, posterior], play).n == 9


def test_the_networks_of_published_weights_have_their_sizes() -> None:
    counts = {
        36_479_194: WideResNet(),
        6_900_132: CifarResNeXt(),
    }
    for count, net in counts.items():
        assert sum(parameter.numel() for parameter in net.parameters()) == count
        assert net.eval()(torch.rand(2, 3, 32, 32)).shape[0] == 2
    pytest.importorskip("torchvision")
    net = BottleneckResNet()
    old = {
        re.sub(r"parametrizations\.weight\.original([01])", lambda found: f"weight_{'gv'[int(found[1])]}", key): value
        for key, value in net.state_dict().items()
    }
    assert {"fc.weight_g", "fc.weight_v", "fc.bias"} <= old.keys()
    other = BottleneckResNet()
    other.load_state_dict(old)
    assert torch.equal(net.fc.weight, other.fc.weight)


def published() -> list[str]:
    tasks = registry.entries("task").values()
    return [task.name for task in tasks if task.name.startswith(FAMILIES) and task.protocol == "stream"]


@pytest.mark.parametrize("name", published())
def test_tasks_without_data_list_well_and_say_what_is_missing(name: str, tmp_path: Path) -> None:
    entry = registry.get("task", name)
    task = entry.load()()
    low, high = task.clean_error
    assert 0 <= low < high <= 0.3
    data = Data(tmp_path)
    assert not any(data.present(item) for item in entry.options["data"])
    with pytest.raises(DataMissing, match=str(tmp_path)) as caught:
        task.build(data)
    assert "By hand: put" in str(caught.value)


def test_another_number_of_class_folders_than_imagenet_s_is_refused(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        (tmp_path / "val" / name).mkdir(parents=True)
    with pytest.raises(DataMissing, match=r"val has 2 class folders, expected 1000\. Unpack the validation images"):
        imagenet.imagenet_classes(tmp_path / "val")


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest, which comes first, is left out."""
    monkeypatch.setattr(domain_sets, "check_digest", lambda path, digest: None)
    path = tmp_path / "torchvision-models" / "resnet18-f37072fd.pth"
    path.parent.mkdir()
    torch.save({"stem.weight": torch.zeros(3)}, path)

    class Folder(Data):
        def file(self, name: str, member: str) -> Path:
            return self.root / name / member

    with pytest.raises(GateError, match=r"f37072fd\.pth does not hold a ResNet-18: .*net\.stem.*Get the file again"):
        domain_sets.PACS().start(Folder(tmp_path))
