"""scikit-learn's handwritten digits, and the layers of the small networks that classify them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..suite.bundle import Array
    from ..suite.data import Data


def read_digits(data: Data) -> tuple[Array, Array]:
    """All digits: images uint8 (1797, 8, 8), the published values 0 to 16 spread to 0 to 255, and classes (1797,)."""
    with gzip.open(data.file("digits", "digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8), table[:, -1]


def as_tensor(images: Array) -> Tensor:
    """uint8 (B, 8, 8) to float32 (B, 1, 8, 8) in [0, 1]."""
    return torch.from_numpy(np.asarray(images, dtype=np.float32) / 255.0)[:, None]


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution with batch norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return layer, nn.BatchNorm2d(outputs), nn.ReLU()
