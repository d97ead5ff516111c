"""The published networks of WILDS 2.0, with the published pre-trained weights from files placed by hand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ...suite.data import Data
from ...suite.places import data_folder
from ..streams.models.libraries import torchvision_net
from ..streams.models.normalize import Normalized
from ..streams.source_models import IMAGENET_MEAN, IMAGENET_STD, check_digest, check_fit, read_weights
from ..text.encoders import similar

if TYPE_CHECKING:
    from pathlib import Path

PAD = 0
_HOST_TOKENS, _DEVICE_TOKENS = 96, 8192
"""How many tokens a group of texts holds at least: short passes cost more than the padding that they save."""
_OLD_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
"""The published file of DenseNet-121 has `norm.1.weight` where torchvision now has `norm1.weight`."""


def imagenet_normalized(net: nn.Module) -> nn.Module:
    """`net` on images in [0, 1], normalised by ImageNet's mean and deviation."""
    return Normalized(net, IMAGENET_MEAN, IMAGENET_STD)


def pretrained(name: str, n_classes: int, data_name: str, file: str) -> nn.Module:
    """torchvision's classifier `name` with the weights in `file` of the data set `data_name` and a new classifier.

    Raises `DataMissing` where the file is not there and `GateError` where it is not the published one or does not fit.
    """
    net = torchvision_net(name, n_classes)
    weights, path = published_weights(data_name, file)
    load_body(net, {_OLD_NAME.sub(r"\1\2", key): value for key, value in weights.items()}, path)
    return net


def published_weights(data_name: str, file: str) -> tuple[dict[str, Tensor], Path]:
    """The weights in `file` of `data_name`, named `<name>-<first digits of its sha256>.pth` as torchvision does."""
    path = Data(data_folder()).file(data_name, file)
    check_digest(path, path.stem.rpartition("-")[2])
    return read_weights(path), path


def load_body(net: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load all but the classifier, the last linear layer, whose own initial weights stay."""
    own = net.state_dict()
    classifier = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)][-1]
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    head = {key: value for key, value in own.items() if key.startswith(f"{classifier}.")}
    body = {key: value for key, value in weights.items() if not key.startswith(f"{classifier}.")}
    merged = counters | body | head
    check_fit(merged, net, path)
    net.load_state_dict(merged)


class Standardized(nn.Module):
    """`net` on images (B, C, H, W) brought to mean 0 and deviation 1, each channel of each image by itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
        logits: Tensor = self.net((images - mean) / torch.where(deviation == 0, 1.0, deviation))
        return logits


class _Group(NamedTuple):
    """Texts of similar length: their rows (b,), token ids (b, t) up to the longest, which are no padding (b, t)."""

    rows: Tensor
    ids: Tensor
    shown: Tensor


def length_groups(ids: Tensor) -> list[_Group]:
    """Token ids (B, T), padded with 0 at the end, in groups of similar length, the longest first; at least one group.

    Which texts are in a batch is not changed, and without dropout each one's result but for rounding neither (tested);
    the published work pads all to the limit. The lengths are brought to the host, on a GPU once a pass.
    """
    lengths = (ids != PAD).sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    enough = _HOST_TOKENS if ids.device.type == "cpu" else _DEVICE_TOKENS
    groups, start = [], 0
    for n, longest in similar(lengths[order].tolist(), enough):
        rows = order[start : start + n]
        kept = ids[rows, :longest]
        groups.append(_Group(rows, kept, kept != PAD))
        start += n
    return groups or [_Group(order, ids[:, :1], ids[:, :1] != PAD)]


class TextClassifier(nn.Module):
    """DistilBERT's sequence classifier of `transformers` on token ids (B, T), padded with 0 -> logits (B, K).

    Its body takes texts in groups of similar length, in training too: it has no statistics of batches, and what changes
    there is which random numbers dropout takes for which text. The classifier sees them all at once.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        groups = length_groups(ids)
        states = [self.net.distilbert(input_ids=group.ids, attention_mask=group.shown.long())[0] for group in groups]
        rows = torch.cat([group.rows for group in groups])
        first = torch.cat([state[:, 0] for state in states])[torch.argsort(rows)]
        logits: Tensor = self.net.classifier(self.net.dropout(self.net.pre_classifier(first).relu()))
        return logits


def distilbert(n_classes: int, data_name: str) -> nn.Module:
    """DistilBERT with a new classifier, from `config.json` and `model.safetensors` of the data set `data_name`.

    Raises `DataMissing` where a file is not there and `GateError` where the weights do not fit.
    """
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    data = Data(data_folder())
    config = DistilBertConfig.from_json_file(data.file(data_name, "config.json"))
    config.num_labels = n_classes
    net = DistilBertForSequenceClassification(config)
    path = data.file(data_name, "model.safetensors")
    weights = {key: value for key, value in read_weights(path).items() if key.startswith("distilbert.")}
    head = {key: value for key, value in net.state_dict().items() if not key.startswith("distilbert.")}
    check_fit(weights | head, net, path)
    net.load_state_dict(weights | head)
    return TextClassifier(net)


class MaskedLanguageModel(nn.Module):
    """The head of DistilBERT's training on the body of a `TextClassifier`: ids and places (B, T) -> logits (M, V)."""

    def __init__(self, classifier: Any, weights: dict[str, Tensor], path: Path) -> None:
        super().__init__()
        self.body = classifier.net.distilbert
        size = self.body.config.dim
        self.transform, self.norm = nn.Linear(size, size), nn.LayerNorm(size, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(self.body.config.vocab_size))
        own = {"vocab_transform": self.transform, "vocab_layer_norm": self.norm}
        for name, layer in own.items():
            part = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
            check_fit(part, layer, path)
            layer.load_state_dict(part)
        with torch.no_grad():
            self.bias.copy_(weights.get("vocab_projector.bias", self.bias))

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        # The logits of all tokens would take a hundred times the memory; which are chosen, the host has to know.
        states, order = [], []
        where = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        for group in length_groups(ids):
            hidden = self.body(input_ids=group.ids, attention_mask=group.shown.long())[0]
            chosen = places[group.rows, : hidden.shape[1]]
            states.append(hidden[chosen])
            order.append(where[group.rows, : hidden.shape[1]][chosen])
        hidden = torch.cat(states)[torch.argsort(torch.cat(order))]
        hidden = self.norm(nn.functional.gelu(self.transform(hidden)))
        logits: Tensor = nn.functional.linear(hidden, self.body.embeddings.word_embeddings.weight, self.bias)
        return logits


def masked_language_model(classifier: nn.Module, data_name: str) -> nn.Module:
    """The head of `model.safetensors` on the body of `classifier`; raises as `distilbert` does."""
    path = Data(data_folder()).file(data_name, "model.safetensors")
    return MaskedLanguageModel(classifier, read_weights(path), path)
