"""What several corruptions share: rounding, Gaussian smoothing, and the crop-and-enlarge of zoom blur and snow."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HAIR = 1.0 / 1024.0
"""Values this little below a grey level count as it. The published code cuts decimals off, and cuts a grey level off
where a plane area comes out one rounding error too small."""


def to_uint8(grey: Tensor) -> Tensor:
    """Grey values in 0 to 255, cut off to whole ones as in the published code; float to uint8, any shape."""
    # By way of int32: the direct conversion is three times slower on a CPU.
    return (grey + HAIR).clamp_(0.0, 255.0).to(torch.int32).to(torch.uint8)


@lru_cache(maxsize=16)
def gaussian_matrix(
    side: int, sigma: float, truncate: float, edge: Literal["nearest", "reflect"], device: torch.device
) -> Tensor:
    """The float32 (side, side) matrix of Gaussian smoothing along one axis.

    The filter is cut at `truncate` sigma. Outside the picture the edge pixel is repeated ("nearest"), or the picture
    is mirrored with its edge pixel doubled ("reflect").
    """
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return torch.eye(side, device=device)
    offset = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offset / sigma) ** 2)
    weights /= weights.sum()
    source = np.arange(side)[:, None] + offset[None, :]
    if edge == "nearest":
        source = source.clip(0, side - 1)
    else:
        source = source % (2 * side)
        source = np.minimum(source, 2 * side - 1 - source)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.broadcast_to(np.arange(side)[:, None], source.shape), source), weights[None, :])
    return torch.from_numpy(matrix).to(device, torch.float32)


def gaussian(x: Tensor, sigma: float, truncate: float = 4.0, edge: Literal["nearest", "reflect"] = "nearest") -> Tensor:
    """Gaussian smoothing of float32 (..., H, H) along both axes, edges as in `gaussian_matrix`."""
    side = x.shape[-1]
    if int(truncate * sigma + 0.5) == 0:
        return x
    matrix = gaussian_matrix(side, sigma, truncate, edge, x.device)
    planes = x.reshape(-1, side, side)
    # One product of one shape per plane: a plane's result cannot depend on how many lie beside it.
    left = matrix.expand(len(planes), side, side)
    return torch.bmm(torch.bmm(left, planes), left.mT).reshape(x.shape)


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of float (B, C, H, H), enlarged bilinearly by `factor` and cut to (B, C, H, H)."""
    side = x.shape[-1]
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    size = round(crop * factor)
    middle = x[..., top : top + crop, top : top + crop]
    if size != crop:
        middle = F.interpolate(middle, size=(size, size), mode="bilinear", align_corners=True)
    trim = (size - side) // 2
    return middle[..., trim : trim + side, trim : trim + side]
