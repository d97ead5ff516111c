"""Source models: weights, preprocessing and expected clean error as one unit, and the gate through which all pass.

A weights file is refused when its digest, its keys, its shapes or its number of classes are not the declared ones, and
a model when it returns non-finite logits or its clean error is off: wrong preprocessing shows as a wrong clean error.
Files are safetensors, or state dicts of `torch.save` (RobustBench, torchvision, timm), of which only tensors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...suite.errors import GateError
from ...suite.files import sha256_file
from .models.normalize import Normalized
from .models.resnet20 import ResNet20
from .models.resnet26gn import ResNet26GN

if TYPE_CHECKING:
    from ...suite.data import Data

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which checkpoints keep the state dict."""
_PREFIXES = ("module.", "model.")
_BAKED = {"mu": "mean", "mean": "mean", "sigma": "std", "std": "std"}
"""Buffers in which some checkpoints keep their preprocessing."""


@dataclass(frozen=True)
class SourceModel:
    """One registered source model.

    `file` is a member of the data set `data`; `sha256` the digest of the file, or the digits with which it begins
    where its publisher gives no more, or empty where none is known. Then keys, shapes and clean error decide, and the
    task puts the digest that it found (`digest`) into its bundle's facts as `weights_sha256`, so that bundles of two
    files differ. Images in [0, 1] are normalised by `mean` and `std`; the error on the clean test images of the task
    must lie in `clean_error`. Clean pictures of other sizes are shrunk to `resize` pixels on the shorter side, bilinear
    unless `bicubic`, before their centre is cut, as its publisher measured it. `channels_last` stores the filters in
    the order that makes the model's convolutions fast on this kind of network.
    """

    name: str
    architecture: Callable[[], nn.Module]
    data: str
    file: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_classes: int
    clean_error: tuple[float, float]
    channels_last: bool = False
    resize: int = 256
    bicubic: bool = False

    def make(self) -> Normalized:
        """The model without its weights: images (B, C, H, W) in [0, 1] -> logits (B, K)."""
        net = self.architecture()
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)
        return Normalized(net, self.mean, self.std)

    def load(self, data: Data) -> nn.Module:
        """The model with its weights, in eval mode.

        Raises `DataMissing` where the file is not there and `GateError` where it is not the declared one.
        """
        path = data.file(self.data, self.file)
        check_digest(path, self.sha256)
        model = self.make()
        net = model.net
        weights = _without_preprocessing(read_weights(path), self, path)
        # Some checkpoints lack the counters of batch norm, which eval mode never reads.
        counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
        weights = counters | weights
        check_fit(weights, net, path)
        net.load_state_dict(weights)
        return model.eval()

    def digest(self, data: Data) -> str:
        """The sha256 of the file on this machine, for the facts of a bundle."""
        return sha256_file(data.folder(self.data) / self.file)

    def gate(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], data: Data) -> float:
        """The error of `model` on clean batches of images (B, C, H, W) and classes (B,).

        Raises `GateError` naming the file where it is off the declared range, or the logits are of no use.
        """
        path = data.folder(self.data) / self.file
        wrong = total = 0
        with torch.no_grad():
            for images, labels in batches:
                logits = model(images)
                if logits.shape != (len(images), self.n_classes):
                    raise GateError(
                        f"{path}: the model returns {tuple(logits.shape)} for {len(images)} images, expected "
                        f"{self.n_classes} classes. {_REMEDY}"
                    )
                if not torch.isfinite(logits).all():
                    raise GateError(f"{path}: the model returns logits that are not finite. {_REMEDY}")
                wrong += int((logits.argmax(dim=1) != labels).sum())
                total += len(labels)
        error = wrong / total
        low, high = self.clean_error
        if not low <= error <= high:
            raise GateError(
                f"{path}: the clean error of '{self.name}' is {error:.2%}, declared is {low:.2%} to {high:.2%}. "
                f"Either the weights are not those of '{self.name}', or they want another preprocessing than mean "
                f"{self.mean} and std {self.std}, or the clean images are not those of the data set. {_REMEDY}"
            )
        return error


_REMEDY = "Get the file again from its source (`selfbench data list`), or declare what it is in a task of your own."


def check_digest(path: Path, sha256: str) -> None:
    """Raise `GateError` unless the digest of the file begins with `sha256`."""
    found = sha256_file(path)
    if not found.startswith(sha256):
        raise GateError(f"{path} has the sha256 {found}, expected {sha256}. {_REMEDY}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a checkpoint of `torch.save`, its wrappers and prefixes taken off.

    Nothing but tensors is unpickled. Raises `GateError` naming a file that is torn or holds something else.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise GateError(f"{path} cannot be read: {error}. {_REMEDY}") from None
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn pickle fails in every way there is
        reason = str(error).strip().split("\n")[0]
        raise GateError(f"{path} cannot be read as tensors alone: {reason} {_REMEDY}") from None
    while isinstance(found, Mapping):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise GateError(f"{path} holds no state dict. {_REMEDY}")
    weights = {str(key): value for key, value in found.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _without_preprocessing(weights: dict[str, Tensor], source: SourceModel, path: Path) -> dict[str, Tensor]:
    """Take mean and std off a state dict that holds them; raises `GateError` when they are not the declared ones."""
    kept = {}
    for key, value in weights.items():
        name = _BAKED.get(key.rpartition(".")[2]) if key.count(".") <= 1 else None
        if name is None:
            kept[key] = value
            continue
        declared = torch.tensor(getattr(source, name))
        if value.numel() != len(declared) or not torch.allclose(value.flatten().float(), declared, atol=1e-4):
            raise GateError(
                f"{path}: '{key}' is {value.flatten().tolist()}, but '{source.name}' declares {name} "
                f"{tuple(declared.tolist())}. {_REMEDY}"
            )
    return kept


def check_fit(weights: Mapping[str, Tensor], net: nn.Module, path: Path) -> None:
    """Raise `GateError` unless keys and shapes are those of `net` and all values are finite."""
    expected = net.state_dict()
    missing = sorted(key for key in expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        told = [f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
                for what, keys in (("lacks", missing), ("has beside them", unknown)) if keys]  # fmt: skip
        raise GateError(f"{path} does not hold the weights of {type(net).__name__}: it {'; it '.join(told)}. {_REMEDY}")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise GateError(
                f"{path}: '{key}' has the shape {tuple(value.shape)}, expected {tuple(expected[key].shape)} "
                f"(another width, or another number of classes). {_REMEDY}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise GateError(f"{path}: '{key}' holds values that are not finite. {_REMEDY}")


RESNET20 = SourceModel(
    "resnet20-cifar10-jpeg", ResNet20, "models", "resnet20-cifar10-jpeg.safetensors",
    "e8d04d74c59ec00118b45af17d5ecb2537760a8fc5fec7d316683cafef7b64e0",
    IMAGENET_MEAN, IMAGENET_STD, 10, (0.1155, 0.1235), channels_last=True,
)  # fmt: skip
RESNET26GN = SourceModel(
    "resnet26gn-cifar10-jpeg", ResNet26GN, "models", "resnet26gn-cifar10-jpeg.safetensors",
    "e402032d320b5257a7ce37456aa60bc4cc5687f7133d14d0541af3dd5dff0372",
    HALF, HALF, 10, (0.1298, 0.1378), channels_last=True,
)  # fmt: skip
