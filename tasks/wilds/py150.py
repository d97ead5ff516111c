"""Py150-WILDS: the next token of a program, new repositories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.errors import DataMissing, MethodError
from ...suite.places import data_folder
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import linear
from ...suite.registry import register_task
from ...suite.scoring import Scores
from ..streams.source_models import check_fit, read_weights
from .tables import REMEDY, Column
from .task import NO_LABEL, OFFICIAL, UNLABELED, WildsTask

_FOLDER = "py150_v1.0"
_PARTS = ("train", "IDval", "OODval", "IDtest", "OODtest")
_KINDS = 7


@register_task(
    "wilds-py150",
    protocol="adaptation",
    version="1",
    metric="class_method_accuracy",
    title="Py150-WILDS, without unlabelled programs",
    budget={"currency": "passes", "limit": 718794, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("wilds-py150", "codegpt-small-py"),
    grants=("norm-layers", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    outputs="tokens",
)
class WildsPy150(WildsTask):
    """Programs of 256 tokens; the accuracy on tokens that are names of classes and methods counts.

    79,866 labelled programs; WILDS 2.0 has no unlabelled ones. Published recipe: CodeGPT, pre-trained on Python, AdamW
    whose rate falls to 0 along a line, gradients no longer than 1; the budget is that of its three epochs. Domains are
    repositories.

    The class of a token is the token after it, so that all but the last one stand in the inputs of the test, too: it is
    the network, causal as published, that must not look ahead. What is sealed are the classes, int32 (N, 255).

    Public array `tokens`, uint16 (N, 256). Private arrays as in all tasks of WILDS, but `labels` int32 (N, 255), -100
    where a token is masked, and `metadata` int16 (N, 255), the kind of each.
    """

    data_name: ClassVar[str] = "wilds-py150"
    dataset: ClassVar[str] = "py150"
    unlabeled_split: ClassVar[str | None] = None
    domain: ClassVar[str | None] = "repo"
    official_metrics: ClassVar[Mapping[str, str]] = {"acc": "class_method_accuracy", "Acc (Overall)": "accuracy"}
    n_classes: ClassVar[int] = 50001
    label_free: ClassVar[bool] = False
    evaluation_batch: ClassVar[int] = 8
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=8e-5, weight_decay=0.0, batch_size=6, ema=0.0, points=3, schedule=linear, max_norm=1.0
    )
    columns: ClassVar[tuple[Column, ...]] = (Column(f"{_FOLDER}/metadata/repo_file_names/repo_ids.csv", "id", low=0),)

    def check(self, root: Path) -> None:
        super().check(root)
        for part in _PARTS:
            for kind, low, high in (("input", 0, self.n_classes - 1), ("input_tok_type", NO_LABEL, _KINDS - 1)):
                _check_lists(root / _FOLDER / "processed" / f"{part}_{kind}.json", low, high)

    def build(self, data: Data) -> Bundle:
        root = self._root(data)
        self.check(root)
        self.tell("reading programs")
        labeled = self._load(root)
        names = ["train", *OFFICIAL.values()]
        numbers = {labeled.split_dict[name]: number for number, name in enumerate(names)}
        y, metadata = labeled.y_array.numpy(), labeled.metadata_array.numpy()
        known = np.where(np.isnan(y), NO_LABEL, y).astype(np.int32)
        # The last token of a program is the class of the one before, whether it is masked or not.
        tokens = np.concatenate([labeled._input_array.numpy(), np.maximum(known[:, -1:], 0)], axis=1)
        return Bundle(
            public={"tokens": tokens.astype(np.uint16)},
            private={
                "split": np.array([numbers[code] for code in labeled.split_array], np.int8),
                "metadata": metadata[:, 1 : 1 + y.shape[1]].astype(np.int16),
                "labels": known,
                "domains": metadata[:, 0].astype(np.int64),
            },
            facts={"splits": [*names, UNLABELED], "metadata_fields": list(labeled.metadata_fields)},
        )

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Token ids int64 (B, 255): all but the last."""
        return torch.from_numpy(public["tokens"][indices][:, :-1].astype(np.int64))

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """int32 (N, 2, 255): the true tokens, -100 where masked, and the kind of each."""
        return np.stack([private["labels"][indices], private["metadata"][indices].astype(np.int32)], axis=1)

    def model(self) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        data = Data(data_folder())
        config = GPT2Config.from_json_file(data.file("codegpt-small-py", "config.json"))
        config.vocab_size = self.n_classes
        net = GPT2LMHeadModel(config)
        file = data.file("codegpt-small-py", "pytorch_model.bin")
        weights, wanted = read_weights(file), net.state_dict()
        # The output layer is the embedding of tokens, under another name.
        weights["lm_head.weight"] = weights.get("transformer.wte.weight", wanted["lm_head.weight"])
        weights = {key: value for key, value in weights.items() if key in wanted}
        check_fit(weights, net, file)
        net.load_state_dict(weights)
        return NextToken(net)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The cross-entropy of the tokens that are not masked: (B, T, K), (B, T)."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten().long(), ignore_index=NO_LABEL)

    def sealed(self, outputs: Any, n: int, owner: str) -> Tensor:
        if not isinstance(outputs, Tensor) or outputs.dim() != 3 or len(outputs) != n:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise MethodError(f"method '{owner}' returned {got} for {n} programs; expected ({n}, T, {self.n_classes})")
        return outputs.argmax(dim=2).to(torch.int32)

    def score(self, logits: Array, labels: Array) -> Scores:
        """The official metrics of classes (N, 255), and the accuracy of each kind of token."""
        y = torch.from_numpy(labels[:, 0].astype(np.float32))
        y[y == NO_LABEL] = torch.nan
        outside = torch.zeros(len(labels), 1, dtype=torch.int64)
        metadata = torch.cat([outside, torch.from_numpy(labels[:, 1].astype(np.int64)), outside], dim=1)
        results = self.official(torch.from_numpy(np.asarray(logits, np.int64)), y, metadata)
        metrics = {ours: float(results[theirs]) for theirs, ours in self.official_metrics.items()}
        kinds = {name[5:-1]: float(value) for name, value in results.items() if name.startswith("Acc (")}
        return Scores(metrics, len(labels), {"accuracy": {k: v for k, v in kinds.items() if k.islower() or "_" in k}})

    def predicted(self, sealed: Array) -> Array:
        """The classes (N, 255)."""
        return sealed

    def unpredicted(self, predicted: Array) -> Array:
        return predicted

    def submission(self, seed: int, predicted: Mapping[str, Array]) -> dict[str, str]:
        """One file a set, the tokens of a program a line."""
        return {
            f"py150/py150_split:{OFFICIAL[part]}_seed:{seed}_pred.csv": "".join(
                ",".join(map(str, row)) + "\n" for row in rows.tolist()
            )
            for part, rows in predicted.items()
        }


class NextToken(nn.Module):
    """A causal language model of `transformers` on token ids (B, T) -> logits (B, T, K).

    All programs are as long in the published files, so that there are no groups of similar length to make.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.net(input_ids=ids).logits
        return logits


def _check_lists(path: Path, low: int, high: int) -> None:
    """Raise `DataMissing` naming file, row and remedy unless `path` holds lists of whole numbers in a range."""
    try:
        rows = json.loads(path.read_text())
        lengths = {len(row) for row in rows}
    except (OSError, ValueError, TypeError) as error:
        raise DataMissing(f"{path} cannot be read as lists of numbers: {error}. {REMEDY}") from None
    if len(lengths) != 1:
        raise DataMissing(f"{path} has rows of {len(lengths)} lengths, expected one. {REMEDY}")
    for number, row in enumerate(rows, 1):
        bad = next((item for item in row if type(item) is not int or not low <= item <= high), None)
        if bad is not None:
            raise DataMissing(f"{path}, row {number}: {bad!r}, expected whole numbers from {low} to {high}. {REMEDY}")
