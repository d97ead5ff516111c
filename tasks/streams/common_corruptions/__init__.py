"""The corruptions of Hendrycks and Dietterich, batched: 15 of the benchmark and 4 held out, at severities 1 to 5.

Source: "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, and the authors'
release (github.com/hendrycks/robustness), whose constants are used for 32 pixels (CIFAR-10-C), 64 (Tiny-ImageNet-C)
and 224 (ImageNet-C).

As published: the order of operations, the border of every filter, the motion kernel of ImageMagick, the crops and
enlargements of zoom blur and snow, the diamond-square cloud of fog with its squared roughness, the copying (not
swapping) of glass blur, OpenCV's Canny edges and chamfer distance of spatter, Pillow's box filter, and the cutting off
of decimals. Replaced by an equal batched form: Poisson noise (inverse distribution function), glass blur's loop
(chains of copies), HSV (closed forms), distances (directions one after the other), large disks (Fourier).
Different: random numbers, which are hashes with 2^16 or 2^24 values; the affine map of the elastic transform is
interpolated at its exact place, where OpenCV 4 rounds to 1/32 of a pixel; values within 1/1024 below a grey level
count as it. JPEG is Pillow's own codec, on the CPU. The published ImageNet-C and Tiny-ImageNet-C were then stored as
JPEG of quality 85: that is not done here.

An image's corruption depends on its pixels, its id, the corruption and the severity, and on nothing else: not on its
batch and not on its place in it. The random bits are equal on all devices; a CPU and a GPU round sums differently, so
that single values may differ by one grey level between them, as between two versions of PyTorch (in snow and spatter,
whose layers have a threshold, a rare pixel by more).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import blur, digital, noise, weather
from .constants import CONSTANTS, EXTRA, FROST_PICTURES, NAMES, SEVERITIES, SIDES
from .draws import Draws
from .weather import read_frost, shrink_frost

__all__ = ["EXTRA", "FROST_PICTURES", "NAMES", "SEVERITIES", "SIDES", "corrupt", "read_frost"]

CHUNK = {"cpu": 1 << 19}
"""How many values are worked on at a time: on a CPU, what its cache holds and small steps are still amortised."""

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    name: getattr(module, name)
    for module in (noise, blur, weather, digital)
    for name in NAMES + EXTRA
    if hasattr(module, name)
}


def corrupt(images: Tensor, ids: Any, name: str, severity: int, *, frost: Sequence[Tensor] | None = None) -> Tensor:
    """Corrupt uint8 `images` (B, 3, H, H), H one of 32, 64, 224, whose identities are the integers `ids` (B,).

    `frost`, for the corruption of that name only: the five photographs as `read_frost` gives them.
    Returns uint8 (B, 3, H, H) on the device of `images`.
    Raises `ValueError` for an unknown name, severity, shape or type, and where `frost` is needed and missing.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"there is no corruption '{name}'; there are {', '.join(NAMES + EXTRA)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, got {severity}")
    side = images.shape[-1]
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side) or side not in SIDES:
        raise ValueError(
            f"images must be uint8 (B, 3, H, H) with H one of {SIDES}, got {images.dtype} {tuple(images.shape)}"
        )
    ids = torch.as_tensor(ids, device=images.device)
    if ids.shape != images.shape[:1] or ids.dtype.is_floating_point:
        raise ValueError(f"ids must be {len(images)} integers, got {ids.dtype} {tuple(ids.shape)}")
    arguments: tuple[Any, ...] = (CONSTANTS[side][name][severity - 1],)
    if name == "frost":
        if frost is None or len(frost) != len(FROST_PICTURES):
            raise ValueError("frost needs its five photographs: frost=read_frost(files)")
        arguments += ([shrink_frost(picture.to(images.device), side) for picture in frost],)
    draws = Draws((NAMES + EXTRA).index(name), severity, ids)
    step = max(1, CHUNK.get(images.device.type, 1 << 25) // (3 * side * side))
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        out[start:stop] = FUNCTIONS[name](images[start:stop].contiguous(), draws.part(start, stop), *arguments)
    return out
