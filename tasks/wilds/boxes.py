"""Boxes of GlobalWheat: read from its tables as numbers and nothing else, kept as arrays, found by a detector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array
from ...suite.errors import DataMissing
from .tables import COUNTED, REMEDY

NO_BOX = "no_box"
DETECTIONS = 100
"""Boxes that the published detector returns of a picture, at most."""
NOTHING = -1.0
"""What pads the boxes of a picture."""
_BOXES = re.compile(r"\d{1,5}( \d{1,5}){3}(;\d{1,5}( \d{1,5}){3})*")


def check_boxes(path: Path) -> None:
    """Raise `DataMissing` naming file, row and remedy where `BoxesString` is not `no_box`, or four numbers a box.

    The package hands each word of that column to Python's `eval`: nothing but digits may reach it, whenever it loads.
    """
    import pandas

    try:
        table = pandas.read_csv(path, usecols=["image_name", "BoxesString", "domain"], dtype=str, keep_default_na=False)
    except (OSError, ValueError, pandas.errors.ParserError) as error:
        raise DataMissing(f"{path} cannot be read as the published table: {error}. {REMEDY}") from None
    for row, text in enumerate(table["BoxesString"], 1):
        if text != NO_BOX and not _BOXES.fullmatch(text):
            raise DataMissing(
                f"{path}, row {row}: 'BoxesString' is {text[:60]!r}, expected '{NO_BOX}' or boxes of four whole "
                f"numbers, `x1 y1 x2 y2`, parted by ';'. {COUNTED} {REMEDY}"
            )


def padded(boxes: list[Array], most: int) -> Array:
    """Boxes of N pictures as float32 (N, most, 4), with `NOTHING` where there are no more."""
    result = np.full((len(boxes), most, 4), NOTHING, np.float32)
    for row, own in enumerate(boxes):
        result[row, : len(own)] = own
    return result


def confident_boxes(found: Tensor, threshold: float) -> Tensor:
    """Detections (B, N, 6) as boxes (B, N, 4) in their order: those with a score of `threshold` or more.

    The others are padding, `NOTHING`, which comes last, because detections come by falling score.
    """
    sure = (found[:, :, 4] >= threshold) & (found[:, :, 5] > 0)
    return torch.where(sure[:, :, None], found[:, :, :4], torch.full_like(found[:, :, :4], NOTHING))


class Detector(nn.Module):
    """A detector of torchvision for one kind of thing: images (B, 3, H, W) in [0, 1] -> detections (B, 100, 6).

    A detection is x1, y1, x2, y2, score, class; rows of zeros follow the last one. Given `targets` (B, M, 4), boxes
    padded with `NOTHING`, in training mode it returns the sum of the detector's losses instead; boxes without an area
    are left out, of which none has a loss.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is not None:
            losses = self.net(list(images), [_target(boxes) for boxes in targets])
            return torch.stack(list(losses.values())).sum()
        training = self.net.training
        found: list[dict[str, Tensor]] = self.net.eval()(list(images))
        self.net.train(training)
        result = images.new_zeros(len(images), DETECTIONS, 6)
        for row, own in enumerate(found):
            own = {name: value[:DETECTIONS] for name, value in own.items()}
            parts = [own["boxes"], own["scores"][:, None], own["labels"][:, None].to(images.dtype)]
            result[row, : len(own["boxes"])] = torch.cat(parts, dim=1)
        return result


def _target(boxes: Tensor) -> dict[str, Tensor]:
    real = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return {"boxes": real, "labels": torch.ones(len(real), dtype=torch.int64, device=boxes.device)}


def faster_rcnn(weights: dict[str, Tensor] | None = None, side: int = 1024) -> nn.Module:
    """torchvision's Faster R-CNN on ResNet-50 with a feature pyramid, one class beside the background.

    `weights` are those trained on COCO, of which all but the box predictor is taken; without them it is as it begins.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    net: Any = FasterRCNN(backbone, num_classes=2, min_size=side, max_size=side, box_detections_per_img=DETECTIONS)
    if weights is not None:
        for layer in net.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = 0.0  # as the published weights were trained
        own = net.state_dict()
        predictor = {key: value for key, value in own.items() if key.startswith("roi_heads.box_predictor.")}
        net.load_state_dict({**{k: v for k, v in weights.items() if k not in predictor}, **predictor})
    return Detector(net)
