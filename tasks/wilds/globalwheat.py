"""GlobalWheat-WILDS: ears of wheat in pictures of fields, new fields."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.errors import GateError, MethodError
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from ...suite.scoring import Scores
from .boxes import DETECTIONS, check_boxes, confident_boxes, faster_rcnn, padded
from .images import WildsImages
from .networks import published_weights
from .tables import Column
from .task import OFFICIAL, UNLABELED

_LABELED, _UNLABELED = "globalwheat_v1.1", "globalwheat_unlabeled_v1.0"
_TABLES = ("official_train", "official_val", "official_test", "fixed_train_val", "fixed_train_test")
_SESSIONS = 47
SURE = 0.5
"""Score from which a detection counts, in the metric and as a teacher's."""


@register_task(
    "wilds-globalwheat",
    protocol="adaptation",
    version="1",
    metric="mean_domain_detection_accuracy",
    title="GlobalWheat-WILDS, unlabelled pictures of the test's fields",
    budget={"currency": "passes", "limit": 105948, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("wilds-globalwheat", "fasterrcnn-coco"),
    grants=("images", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-globalwheat",
    outputs="boxes",
    decoded={"pictures": 15512, "shape": (3, 1024, 1024)},
)
class WildsGlobalWheat(WildsImages):
    """Pictures of 1024 x 1024 pixels; the mean over fields of the share of ears that are found, false ones counted.

    2,943 labelled pictures, 8,997 unlabelled ones of the test's fields. Published recipe: Faster R-CNN on ResNet-50
    trained on COCO, Adam at a constant rate; the budget is that of its twelve epochs. Nothing is augmented: a view
    would move the boxes. Domains are sessions of photography.

    Classes of a batch are its boxes (B, M, 4), padded with -1; what is sealed are detections (N, 100, 6): x1, y1, x2,
    y2, score, class. A box is asked for 50 % of overlap and a score above 0.5.

    Private arrays as in all tasks of WILDS, with `boxes` float32 (N, M, 4) in place of classes.
    """

    data_name: ClassVar[str] = "wilds-globalwheat"
    dataset: ClassVar[str] = "globalwheat"
    unlabeled_split: ClassVar[str | None] = "test_unlabeled"
    domain: ClassVar[str | None] = "session"
    official_metrics: ClassVar[Mapping[str, str]] = {
        "detection_acc_avg_dom": "mean_domain_detection_accuracy",
        "detection_acc_avg": "detection_accuracy",
    }
    n_classes: ClassVar[int] = 1
    own_loss: ClassVar[bool] = True
    label_free: ClassVar[bool] = False
    side: ClassVar[int] = 1024
    evaluation_batch: ClassVar[int] = 8
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=1e-5, weight_decay=1e-3, batch_size=4, ema=0.0, points=12, schedule=constant
    )
    columns: ClassVar[tuple[Column, ...]] = tuple(
        Column(f"{folder}/{name}.csv", "domain", low=0, high=_SESSIONS - 1 if folder == _LABELED else None)
        for folder, names in (
            (_LABELED, _TABLES),
            (_UNLABELED, tuple(f"official_{part}_unlabeled" for part in ("train", "val", "test", "extra"))),
        )
        for name in names
    )

    def build(self, data: Data) -> Bundle:
        root = self._root(data)
        self.check(root)
        self.tell("reading tables")
        labeled, pool = self._load(root), self._load(root, unlabeled=True)
        names = ["train", *(theirs for theirs in OFFICIAL.values() if theirs in labeled.split_dict)]
        rows, chosen = np.arange(len(labeled)), np.flatnonzero(pool.split_array == pool.split_dict["test_unlabeled"])
        numbers = {labeled.split_dict[name]: number for number, name in enumerate(names)}
        split = [np.array([numbers[code] for code in labeled.split_array], np.int8)]
        split.append(np.full(len(chosen), len(names), np.int8))
        metadata = labeled.metadata_array.numpy().astype(np.int64)
        boxes = [item["boxes"].numpy() for item in labeled.y_array]
        bundle = Bundle(
            public=self.joined([self.arrays(data, labeled, rows), self.arrays(data, pool, chosen)]),
            private={
                "split": np.concatenate(split),
                "metadata": metadata,
                "labels": padded(boxes, max(map(len, boxes))),
                "domains": np.concatenate([metadata[:, 0], pool.metadata_array.numpy()[chosen, 0]]),
            },
            facts={"splits": [*names, UNLABELED], "metadata_fields": list(labeled.metadata_fields)},
        )
        return self.sized(bundle, data)

    def _load(self, root: Path, unlabeled: bool = False, **options: Any) -> Any:
        """As elsewhere, but for boxes, which are checked each time: scoring and exports read the tables again."""
        if not unlabeled:
            for name in _TABLES:
                check_boxes(root / _LABELED / f"{name}.csv")
        return super()._load(root, unlabeled, **options)

    def file_names(self, dataset: Any, rows: Array) -> list[str]:
        return [f"images/{dataset._image_array[row]}" for row in rows]

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """float32 (N, 2 + M, 4): two rows of metadata, then the boxes of the labelled examples."""
        metadata = np.zeros((len(indices), 8), np.float32)
        own = private["metadata"][indices]
        metadata[:, : own.shape[1]] = own
        return np.concatenate([metadata.reshape(-1, 2, 4), private["labels"][indices]], axis=1)

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs

    def model(self) -> nn.Module:
        weights, file = published_weights("fasterrcnn-coco", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
        try:
            return faster_rcnn(weights, self.side)
        except RuntimeError as error:
            raise GateError(f"{file} does not hold torchvision's Faster R-CNN: {str(error).splitlines()[-1]}") from None

    def supervised(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        """The detector's own losses."""
        loss: Tensor = model(inputs, targets)
        return loss

    def targets(self, outputs: Tensor) -> Tensor:
        """Detections (B, 100, 6) as boxes (B, 100, 4): those with a score of `SURE` or more, the rest padding."""
        return confident_boxes(outputs, SURE)

    def self_supervised(self, model: nn.Module, inputs: Tensor, threshold: float) -> Tensor:
        """As published: the mean loss over pictures with sure boxes, times the share of detections that are sure."""
        with torch.no_grad():
            found = model(inputs)
        boxes = confident_boxes(found, threshold)
        kept, all_found = boxes[:, :, 0] >= 0, found[:, :, 5] > 0
        chosen = kept.any(dim=1)
        if not chosen.any():
            return inputs.new_zeros(())
        loss: Tensor = kept.sum() / all_found.sum() * self.supervised(model, inputs[chosen], boxes[chosen])
        return loss

    def sealed(self, outputs: Any, n: int, owner: str) -> Tensor:
        if not isinstance(outputs, Tensor) or outputs.shape != (n, DETECTIONS, 6):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise MethodError(f"method '{owner}' returned {got} for {n} pictures; expected ({n}, {DETECTIONS}, 6)")
        return outputs.detach().float()

    def score(self, logits: Array, labels: Array) -> Scores:
        """The official metrics, and the accuracy by session."""
        fields = len(self._scoring.metadata_fields)
        metadata = torch.from_numpy(labels[:, :2].reshape(len(labels), 8)[:, :fields].astype(np.int64))
        true = [{"boxes": torch.from_numpy(own[own[:, 0] >= 0])} for own in labels[:, 2:]]
        results = self.official(as_dictionaries(logits), true, metadata)
        metrics = {ours: float(results[theirs]) for theirs, ours in self.official_metrics.items()}
        groups = {
            name.removeprefix("detection_acc_session:"): float(value)
            for name, value in results.items()
            if name.startswith("detection_acc_session:") and results[f"count_{name.removeprefix('detection_acc_')}"] > 0
        }
        return Scores(metrics, len(labels), {"detection_accuracy": groups})

    def predicted(self, sealed: Array) -> Array:
        """The detections (N, 100, 6)."""
        return sealed

    def unpredicted(self, predicted: Array) -> Array:
        return predicted

    def submission(self, seed: int, predicted: Mapping[str, Array]) -> dict[str, str | bytes]:
        """One file of torch a set: a list of boxes, scores and classes, a picture each, in official order."""
        files: dict[str, str | bytes] = {}
        for part, sealed in predicted.items():
            buffer = io.BytesIO()
            torch.save(as_dictionaries(sealed), buffer)
            files[f"globalwheat/globalwheat_split:{OFFICIAL[part]}_seed:{seed}_pred.pth"] = buffer.getvalue()
        return files


def as_dictionaries(sealed: Array) -> list[dict[str, Tensor]]:
    """Detections (N, 100, 6) as the package takes them."""
    return [
        {
            "boxes": torch.from_numpy(own[:, :4].copy()),
            "scores": torch.from_numpy(own[:, 4].copy()),
            "labels": torch.from_numpy(own[:, 5].astype(np.int64)),
        }
        for picture in np.asarray(sealed)
        for own in [picture[picture[:, 5] > 0]]
    ]
