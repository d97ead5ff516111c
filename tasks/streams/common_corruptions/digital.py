"""Digital: contrast, elastic deformation, pixels, JPEG, and saturation.

Each takes uint8 `images` (B, 3, H, H) and returns as many.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import ELASTIC_UNIT
from .draws import Draws
from .filters import gaussian, to_uint8

BAND = 32
"""Columns of a product of pictures with weights that are nearly all 0: narrow saves work, wide pays for a call."""


def contrast(images: Tensor, draws: Draws, factor: float) -> Tensor:
    """Each channel moves towards its mean."""
    pixels = images.shape[-1] * images.shape[-2]
    mean = images.flatten(2).sum(dim=2, dtype=torch.int64).to(torch.float32) / pixels
    return to_uint8((mean * (1.0 - factor))[..., None, None] + images * factor)


def saturate(images: Tensor, draws: Draws, level: tuple[float, float]) -> Tensor:
    """The saturation of HSV becomes `factor` times itself plus `offset`, within [0, 1].

    Hue and value stay, so that each colour's distance to the pixel's largest changes by one factor. A grey pixel has
    hue 0 and so turns red where `offset` is above 0, as in the published code.
    """
    factor, offset = level
    x = images.to(torch.float32)
    largest, smallest = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    spread = largest - smallest
    wanted = (spread / largest.clamp(min=1.0) * factor + offset).clamp_(max=1.0) * largest
    grey = spread == 0
    out = largest - (largest - x) * torch.where(grey, 0.0, wanted / spread.clamp(min=1.0))
    out[:, 1:] -= wanted * grey
    return to_uint8(out)


def pixelate(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Averaged to fewer pixels and enlarged by repetition, as Pillow's BOX filter does: whole pixels, two roundings."""
    side = images.shape[-1]
    bands, rows, count, up = _boxes(side, int(side * scale), images.device)
    x = images.to(torch.float32).reshape(-1, side)
    # Sums of whole numbers: exact in any order.
    x = torch.cat([x[:, start : start + len(weights)] @ weights for start, weights in bands], dim=1)
    x = F.pad((x / count + 0.5).floor_().reshape(-1, side, len(count)), (0, 0, 0, 1))
    total = x.index_select(1, rows[0])
    for row in rows[1:]:
        total += x.index_select(1, row)
    x = (total / count[:, None] + 0.5).floor_().to(torch.uint8)
    return x.index_select(2, up).index_select(1, up).reshape(images.shape)


def elastic_transform(images: Tensor, draws: Draws, level: tuple[float, float, float]) -> Tensor:
    """A random affine map of three points, then displacement by two smooth random fields; bilinear, edges mirrored."""
    side = images.shape[-1]
    strength, sigma, reach = (ELASTIC_UNIT[side] * value for value in level)
    rows, columns = _grid(side, images.device)
    a = _affine(draws.uniform(0, 3, 2).to(torch.float64).mul_(2.0).sub_(1.0) * reach, side).to(torch.float32)
    a = a[:, :, :, None, None]
    place = a[:, :, 0] * columns + a[:, :, 1] * rows + a[:, :, 2]
    # Without `align_corners` the mirror lies at the edge pixel's far side, with it at its centre.
    warped = F.grid_sample(
        images.to(torch.float32), place.movedim(1, -1) * (2.0 / (side - 1)) - 1.0,
        padding_mode="reflection", align_corners=True,
    )  # fmt: skip
    if strength == 0.0:
        return to_uint8(warped)
    fields = torch.stack([draws.uniform(1, side, side), draws.uniform(2, side, side)], dim=1)
    shift = gaussian(fields.mul_(2.0).sub_(1.0), sigma, truncate=3.0, edge="reflect") * strength
    place = torch.stack([columns + shift[:, 0], rows + shift[:, 1]], dim=-1)
    return to_uint8(
        F.grid_sample(warped, (place * 2.0 + 1.0) / side - 1.0, padding_mode="reflection", align_corners=False)
    )


def jpeg_compression(images: Tensor, draws: Draws, quality: int) -> Tensor:
    """Through Pillow's JPEG codec (colour at half resolution), one image after the other."""
    from PIL import Image

    side = images.shape[-1]
    # Pillow's raw mode "RGB;L": row by row, and in each the three channels one after the other.
    lines = images.cpu().transpose(1, 2).contiguous()
    for line in lines.flatten(1).numpy():
        file = io.BytesIO()
        Image.frombuffer("RGB", (side, side), line, "raw", "RGB;L", 0, 1).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            line[:] = np.frombuffer(decoded.tobytes("raw", "RGB;L"), np.uint8)
    return lines.transpose(1, 2).contiguous().to(images.device)


@lru_cache(maxsize=2)
def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, float32 (H, H) each."""
    line = torch.arange(side, dtype=torch.float32, device=device)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return rows.contiguous(), columns.contiguous()


def _affine(moves: Tensor, side: int) -> Tensor:
    """The maps that take the moved three points back to their places; (B, 3, 2) pixels (x, y) -> (B, 2, 3)."""
    centre, reach = side // 2, side // 3
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=moves.dtype, device=moves.device)
    points = points * reach + centre
    moved = points + moves
    # Two edges of the triangle before and after: the linear part maps the one pair to the other.
    before, after = points[1:] - points[:1], moved[:, 1:] - moved[:, :1]
    (p, q), (r, s) = after.movedim(0, -1)
    determinant = p * s - q * r
    inverse = torch.stack([s, -q, -r, p], dim=-1).reshape(-1, 2, 2) / determinant[:, None, None]
    linear = (inverse[..., None] * before).sum(dim=2).mT
    origin = points[0] - (linear * moved[:, None, 0]).sum(dim=2)
    return torch.cat([linear, origin[:, :, None]], dim=2)


@lru_cache(maxsize=16)
def _boxes(
    side: int, small: int, device: torch.device
) -> tuple[list[tuple[int, Tensor]], list[Tensor], Tensor, Tensor]:
    """The windows of pixels, one for each small pixel, that average to it; they tile the line.

    As bands of columns, (first pixel, weights 0 or 1 (pixels, small pixels)), for a product; as rows for sums, the
    first, second, ... pixel of each window (small,), `side` where a window has fewer; the pixels of each window
    (small,); and the window of each pixel (side,), by the centres of pixels.
    """
    scale = side / small
    centre = (np.arange(small)[:, None] + 0.5) * scale
    offset = (np.arange(side)[None, :] - centre + 0.5) / scale
    inside = (offset > -0.5) & (offset <= 0.5)
    up = ((np.arange(side) + 0.5) * small / side).astype(np.int64)
    first, count = inside.argmax(axis=1), inside.sum(axis=1)
    bands = []
    for windows in np.array_split(np.arange(small), max(1, side // BAND)):
        start, stop = first[windows[0]], first[windows[-1]] + count[windows[-1]]
        weights = torch.from_numpy(inside[windows, start:stop].T.copy())
        bands.append((int(start), weights.to(device, torch.float32)))
    rows = [torch.from_numpy(np.where(n < count, first + n, side)).to(device) for n in range(count.max())]
    return bands, rows, torch.from_numpy(count).to(device, torch.float32), torch.from_numpy(up).to(device)
