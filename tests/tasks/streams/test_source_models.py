"""The gate of source models: small files in the layouts of their publishers, and each way in which one can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, GateError, UsageError
from selfbench.suite.places import data_folder
from selfbench.tasks.streams.models.libraries import timm_net, torchvision_net
from selfbench.tasks.streams.models.resnet20 import ResNet20
from selfbench.tasks.streams.models.resnet26gn import ResNet26GN
from selfbench.tasks.streams.published_models import RESNET50_GN, VIT_B16
from selfbench.tasks.streams.source_models import RESNET20, RESNET26GN, SourceModel, check_fit, read_weights

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


class Net(nn.Module):
    """Tells the brightest channel apart once it is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(x).mean(dim=(2, 3)))
        return logits


def batches() -> list[tuple[Tensor, Tensor]]:
    """Grey images of which one channel is brighter than the mean of the data set, in its own measure."""
    labels = torch.arange(60) % 3
    images = torch.tensor(MEAN).view(1, 3, 1, 1).repeat(60, 1, 4, 4)
    images[torch.arange(60), labels] += 0.15 * torch.tensor(STD)[labels].view(-1, 1, 1)
    return [(images[:40], labels[:40]), (images[40:], labels[40:])]


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., tuple[SourceModel, Data]]:
    """place(name, save): a data set with one weights file, and the source model that is declared for it."""

    def make(name: str, save: Callable[[Path], object], **changes: Any) -> tuple[SourceModel, Data]:
        file = tmp_path / "data" / "weights" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file)
        description = tmp_path / "sets.toml"
        description.write_text(
            '[weights]\ntitle = "t"\nlicence = "l"\nhomepage = "h"\ncitation = "c"\nkind = "folder"\n'
            f'by_hand = "Ask."\nmembers = [{{ name = "{name}" }}]\n'
        )
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        source = SourceModel("tiny", Net, "weights", name, digest, MEAN, STD, 3, (0.0, 0.05))
        return dataclasses.replace(source, **changes), Data(tmp_path / "data", description)

    return make


def state(**changes: Tensor) -> dict[str, Tensor]:
    return Net().state_dict() | changes


FORMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "safetensors": ("a.safetensors", lambda file: save_file(state(), file)),
    "plain": ("a.pth", lambda file: torch.save(state(), file)),
    "parallel": ("a.pt", lambda file: torch.save({f"module.{k}": v for k, v in state().items()}, file)),
    "wrapped": ("a.pt", lambda file: torch.save({"epoch": 3, "state_dict": state()}, file)),
    "doubly": (
        "a.pt",
        lambda file: torch.save({"state_dict": {f"module.model.{k}": v for k, v in state().items()}}, file),
    ),
    "with preprocessing": (
        "a.pt",
        lambda file: torch.save(state(mu=torch.tensor(MEAN).view(1, 3, 1, 1), sigma=torch.tensor(STD)), file),
    ),
    "without counters": (
        "a.pt",
        lambda file: torch.save({k: v for k, v in state().items() if "tracked" not in k}, file),
    ),
    "old": ("a.pt", lambda file: torch.save(state(), file, _use_new_zipfile_serialization=False)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_is_read(place: Callable[..., tuple[SourceModel, Data]], form: str) -> None:
    source, data = place(*FORMS[form])
    model = source.load(data)
    assert not model.training
    assert source.gate(model, batches(), data) == 0.0
    for name, value in Net().state_dict().items():
        assert torch.equal(model.state_dict()[f"net.{name}"], value)


def test_preprocessing_is_part_of_the_model(place: Callable[..., tuple[SourceModel, Data]]) -> None:
    source, data = place(*FORMS["plain"])
    images = torch.rand(5, 3, 4, 4)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    assert torch.equal(source.load(data)(images), Net().eval()((images - mean) / std))
    assert {"normalize.mean", "normalize.std"} <= source.load(data).state_dict().keys()


def other_digest(file: Path) -> None:
    torch.save(state(), file)


@pytest.mark.parametrize(
    ("save", "changes", "says"),
    [
        (other_digest, {"sha256": "0" * 64}, "has the sha256 .* expected 0000"),
        (other_digest, {"sha256": "0676ba61"}, "expected 0676ba61"),
        (lambda file: torch.save(state(**{"fc.weight": torch.eye(4, 3)}), file), {}, r"\(4, 3\), expected \(3, 3\)"),
        (lambda file: torch.save(state(extra=torch.ones(1)), file), {}, "has beside them extra"),
        (lambda file: torch.save({"fc.weight": torch.eye(3)}, file), {}, r"lacks norm\.bias, .* and 1 more"),
        (lambda file: torch.save(state(**{"fc.weight": torch.full((3, 3), torch.nan)}), file), {}, "not finite"),
        (lambda file: torch.save(state(mean=torch.tensor(STD)), file), {}, r"'mean' is .* declares mean \(0\.4"),
        (lambda file: torch.save({"state_dict": state(), "hook": Path}, file), {}, "cannot be read as tensors alone"),
        (lambda file: torch.save([1, 2], file), {}, "holds no state dict"),
        (lambda file: file.write_bytes(b"half a file"), {}, "cannot be read as tensors alone"),
    ],
)
def test_a_wrong_file_is_named_and_refused(
    place: Callable[..., tuple[SourceModel, Data]], save: Callable[[Path], object], changes: dict, says: str
) -> None:
    source, data = place("a.pt", save, **changes)
    with pytest.raises(GateError, match=says) as caught:
        source.load(data)
    assert str(data.folder("weights") / "a.pt") in str(caught.value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_torn_file_is_named(place: Callable[..., tuple[SourceModel, Data]], name: str) -> None:
    def save(file: Path) -> None:
        save_file(state(), file) if name.endswith("s") else torch.save(state(), file)
        file.write_bytes(file.read_bytes()[:-40])

    source, data = place(name, save)
    with pytest.raises(GateError, match=r"a\.\w+ cannot be read"):
        source.load(data)


def test_a_missing_file_is_named(place: Callable[..., tuple[SourceModel, Data]]) -> None:
    source, data = place(*FORMS["plain"])
    (data.folder("weights") / "a.pth").unlink()
    with pytest.raises(DataMissing, match=r"a\.pth is missing"):
        source.load(data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, r"clean error of 'tiny' is 66\.67%, declared is 0\.00% to"),
        ({"clean_error": (0.01, 0.05)}, r"is 0\.00%"),
        ({"n_classes": 10}, "expected 10 classes"),
    ],
)
def test_wrong_preprocessing_classes_or_weights_show_in_the_clean_error(
    place: Callable[..., tuple[SourceModel, Data]], changes: dict, says: str
) -> None:
    source, data = place(*FORMS["plain"], **changes)
    with pytest.raises(GateError, match=says) as caught:
        source.gate(source.load(data), batches(), data)
    assert "a.pth" in str(caught.value)


def test_logits_that_are_not_finite_are_refused(place: Callable[..., tuple[SourceModel, Data]]) -> None:
    source, data = place("a.pt", lambda file: torch.save(state(**{"norm.weight": torch.full((3,), 3e38)}), file))
    with pytest.raises(GateError, match="not finite"):
        source.gate(source.load(data), batches(), data)


def test_torchvision_weights_pass_the_same_gate(place: Callable[..., tuple[SourceModel, Data]]) -> None:
    pytest.importorskip("torchvision")

    def net() -> nn.Module:
        return torchvision_net("resnet18", 7)

    torch.manual_seed(0)
    kept = net().state_dict()
    source, data = place("r.pth", lambda file: torch.save(kept, file), architecture=net, n_classes=7)
    assert source.load(data)(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    wrong, data = place("r.pth", lambda file: torch.save(kept, file), architecture=lambda: torchvision_net("resnet18"))
    with pytest.raises(GateError, match=r"'fc\.weight' has the shape \(7, 512\), expected \(1000, 512\)"):
        wrong.load(data)


def test_timm_weights_pass_the_same_gate(place: Callable[..., tuple[SourceModel, Data]]) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'selfbench[timm]'")

    def net() -> nn.Module:
        return timm_net("resnet10t", 7)

    kept = net().state_dict()
    source, data = place("t.safetensors", lambda file: save_file(kept, file), architecture=net, n_classes=7)
    assert source.load(data)(torch.rand(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(("source", "parameters"), [(VIT_B16, 86_567_656), (RESNET50_GN, 25_557_032)])
def test_the_published_timm_models_are_those_that_timm_builds(source: SourceModel, parameters: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'selfbench[timm]'")
    with torch.device("meta"):
        net = source.architecture()
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    name = "vit_base_patch16_224.augreg_in21k_ft_in1k" if source is VIT_B16 else "resnet50_gn.a1h_in1k"
    config = timm.models.get_pretrained_cfg(name)
    assert (config.mean, config.std, config.num_classes) == (source.mean, source.std, source.n_classes)
    assert source.resize == int(config.input_size[1] / config.crop_pct)
    assert (config.interpolation, config.crop_mode) == ("bicubic", "center")
    assert source.bicubic
    assert name in source.file or str(config.url).endswith(source.file)
    described = next(item for item in Data(Path()).describe(source.data).members if item.name == source.file)
    assert described.sha256 == source.sha256
    low, high = source.clean_error
    assert low < {86_567_656: 0.15466, 25_557_032: 0.19926}[parameters] < high


def test_the_whole_resnet_of_timm_passes_the_gate(tmp_path: Path) -> None:
    """Random weights in the published layout: the file is read, fits, and the digest alone gives it away."""
    pytest.importorskip("timm", reason="timm is not installed: pip install 'selfbench[timm]'")
    data = Data(tmp_path)
    file = tmp_path / RESNET50_GN.data / RESNET50_GN.file
    file.parent.mkdir()
    with torch.device("meta"):
        shapes = RESNET50_GN.architecture().state_dict()
    weights = {key: torch.full(value.shape, 0.01) for key, value in shapes.items()}
    torch.save(weights, file)
    with pytest.raises(DataMissing, match="has not the published content"):
        RESNET50_GN.load(data)
    description = tmp_path / "sets.toml"
    description.write_text(
        f'[{RESNET50_GN.data}]\ntitle = "t"\nlicence = "l"\nhomepage = "h"\ncitation = "c"\nkind = "folder"\n'
        f'by_hand = "Ask."\nmembers = [{{ name = "{RESNET50_GN.file}" }}]\n'
    )
    data = Data(tmp_path, description)
    with pytest.raises(GateError, match="expected 8fe6c4d08094"):
        RESNET50_GN.load(data)
    source = dataclasses.replace(RESNET50_GN, sha256="")
    model = source.load(data)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
    assert source.digest(data) == hashlib.sha256(file.read_bytes()).hexdigest()
    del weights["layer1.0.bn1.weight"]
    torch.save(weights, file)
    with pytest.raises(GateError, match=r"it lacks layer1\.0\.bn1\.weight"):
        source.load(data)


@pytest.mark.parametrize(
    ("make", "library", "extra"), [(torchvision_net, "torchvision", "images"), (timm_net, "timm", "timm")]
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[str], nn.Module], library: str, extra: str
) -> None:
    for name in (library, f"{library}.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"'resnet18' needs {library}: type `pip install 'selfbench\[{extra}\]'`"):
        make("resnet18")


def test_the_parameters_are_as_many_as_documented() -> None:
    for net, count in ((ResNet20(), 269_722), (ResNet26GN(), 366_938)):
        assert sum(parameter.numel() for parameter in net.parameters()) == count
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_shortcuts_have_no_parameters_and_fill_with_zeros() -> None:
    block = ResNet20().layer2[0].eval()
    for layer in (block.conv1, block.conv2):
        nn.init.zeros_(layer.weight)
    x = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == y[:, 24:].abs().sum() == 0
    block = ResNet26GN().layer3[0]
    for layer in (block.conv1, block.conv2):
        nn.init.zeros_(layer.weight)
    x = torch.rand(2, 32, 8, 8)
    with torch.no_grad():
        y = block(x)
    assert torch.allclose(y[:, :32], x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)))
    assert y[:, 32:].abs().sum() == 0


@pytest.mark.parametrize("source", [RESNET20, RESNET26GN], ids=lambda source: source.name)
def test_the_real_weights_fit_and_are_the_described_ones(source: SourceModel) -> None:
    data = Data(data_folder())
    described = next(item for item in data.describe(source.data).members if item.name == source.file)
    assert described.sha256 == source.sha256
    if not data.present(source.data):
        pytest.skip(f"the weights are not below $SELFBENCH_DATA ({data.root})")
    model = source.load(data)
    check_fit(read_weights(data.file(source.data, source.file)), model.net, Path(source.file))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
