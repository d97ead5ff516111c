"""Image files to uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....suite.bundle import Array
from ....suite.errors import DataMissing, UsageError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


def decode(
    content: bytes,
    where: str,
    side: int | None = None,
    resize: int | Sequence[int] | None = None,
    bicubic: bool = False,
) -> Array:
    """One encoded image as uint8 (3, H, W) in RGB.

    `resize` sets the shorter side, or (height, width), as torchvision does on PIL images, by bilinear interpolation
    unless `bicubic`; `side` then cuts the centre. Raises `DataMissing` naming `where` when the file is torn, too small,
    or of so many pixels that pillow takes it for an attack.
    """
    image_module = _pillow()
    try:
        with image_module.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, image_module.DecompressionBombError) as error:
        raise DataMissing(f"{where} is no whole image: {error}. Get the file again.") from None
    width, height = image.size
    if resize is not None:
        if isinstance(resize, int):
            short = min(width, height)
            wide = (int(resize * width / short), int(resize * height / short))
        else:
            wide = (resize[1], resize[0])
        if wide != image.size:
            kind = image_module.Resampling.BICUBIC if bicubic else image_module.Resampling.BILINEAR
            image = image.resize(wide, kind)
    if side is not None and image.size != (side, side):
        width, height = image.size
        if min(width, height) < side:
            raise DataMissing(f"{where} has {width} x {height} pixels, expected {side} or more. Get the file again.")
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


def decode_file(
    path: Path, side: int | None = None, resize: int | Sequence[int] | None = None, bicubic: bool = False
) -> Array:
    """`decode` of a file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror}. Get the file again.") from None
    return decode(content, str(path), side, resize, bicubic)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("Images are decoded by pillow: type `pip install 'selfbench[images]'`.") from None
    return Image
