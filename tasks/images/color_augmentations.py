"""Weak and strong views of colour images (B, 3, H, W) in [0, 1] as in FixMatch, batched on the images' device.

All randomness comes from the given generator. Nothing waits for the host: how many images an operation works on is
known without asking the device which.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

POOL = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The operations of RandAugment in FixMatch. The last five move pixels and are done as one."""
_MOVING = 5
_GREY = 0.5


def weak_view(images: Tensor, generator: torch.Generator, share: float = 0.125, flip: bool = True) -> Tensor:
    """Each image mirrored with probability 1/2 if `flip`, and moved by up to `share` of its side along each axis.

    The moves are whole pixels, drawn evenly; what comes in from outside is the picture reflected at its border, as in
    the authors' code (Sohn et al. 2020, arXiv:2001.07685, section 2.3: flip and shift, by up to 12.5 %; how the border
    is filled the paper does not say).
    """
    batch, channels, height, width = images.shape
    device = images.device
    reach = round(share * height), round(share * width)
    down, across = (
        torch.randint(-pixels, pixels + 1, (batch, 1), generator=generator, device=device) for pixels in reach
    )
    rows = _reflect(torch.arange(height, device=device) + down, height)
    columns = _reflect(torch.arange(width, device=device) + across, width)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    place = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    moved = images.flatten(2).gather(2, place.expand(-1, channels, -1))
    return moved.view(images.shape)


def strong_view(images: Tensor, generator: torch.Generator, share: float = 0.125, flip: bool = True) -> Tensor:
    """`weak_view`, then `rand_augment` of two operations, then `cutout`: the strong view of FixMatch."""
    return cutout(rand_augment(weak_view(images, generator, share, flip), generator), generator)


def _reflect(index: Tensor, length: int) -> Tensor:
    """Indices beyond 0 or length - 1, by less than length, reflected there."""
    return (length - 1) - ((length - 1) - index.abs()).abs()


@torch.no_grad()
def rand_augment(images: Tensor, generator: torch.Generator, operations: int = 2) -> Tensor:
    """`operations` random operations of `POOL` an image, one after the other, each at a random magnitude.

    The pool and its ranges are those of FixMatch (arXiv:2001.07685, appendix on RandAugment, where the magnitude is
    drawn anew for each operation): factors of brightness, colour, contrast and sharpness in [0.05, 0.95], posterize to
    4 to 7 bits, solarize from a threshold in [0, 1], rotation by up to 30 degrees, shears of up to 0.3 and shifts by up
    to 0.3 of the side, black outside and by the nearest neighbour. Values are not rounded to 8 bits in between.

    In each round every image meets each operation with the same chance. Over a batch the draw is stratified: no
    operation is met by more than its share of the images, rounded up, so that the work is divided without asking the
    device.
    """
    batch = len(images)
    if batch == 0:
        return images
    share = -(-batch // len(POOL))
    values, place = images, torch.arange(batch, device=images.device)
    for _ in range(operations):
        # Slot s is operation s // share. Slots of images that do not exist work on the last one and are dropped.
        order = torch.rand(share * len(POOL), generator=generator, device=images.device).argsort()
        magnitude = torch.rand(len(order), generator=generator, device=images.device, dtype=images.dtype)
        values = _apply(values[place[order.clamp_max(batch - 1)]], magnitude, share)
        place = order.argsort()[:batch]
    return values[place]


def _apply(images: Tensor, magnitude: Tensor, share: int) -> Tensor:
    """Operation k of `POOL` on the k-th `share` images, at `magnitude` in [0, 1) of its range; may work in place."""
    for number, name in enumerate(POOL[1:-_MOVING], 1):
        part = slice(number * share, (number + 1) * share)
        images[part] = VALUES[name](images[part], magnitude[part].view(-1, 1, 1, 1))
    moved = slice((len(POOL) - _MOVING) * share, None)
    images[moved] = move(images[moved], inverse_maps(2 * magnitude[moved] - 1, share))
    return images


def autocontrast(images: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """Each channel stretched to [0, 1]; one of a single value stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    spread = high - low
    flat = spread <= 0
    return (images - low.masked_fill(flat, 0.0)) / spread.masked_fill(flat, 1.0)


def equalize(images: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """Each channel's histogram of 256 levels flattened, by the integer rule of Pillow."""
    levels = (255 * images).round_().long().flatten(2)
    pixels = levels.size(2)
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    step = (pixels - counts.gather(2, levels.amax(dim=2, keepdim=True))) // 255
    table = ((counts.cumsum(dim=2) - counts + step // 2) // step.clamp_min(1)).clamp_max(255)
    flattened = table.gather(2, levels).to(images.dtype).div_(255).view_as(images)
    return torch.where((step > 0)[..., None], flattened, images)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    return images * _factor(magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    return torch.lerp(luma(images), images, _factor(magnitude))


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    return torch.lerp(luma(images).mean(dim=(2, 3), keepdim=True), images, _factor(magnitude))


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Towards a mean over 3 x 3 pixels in which the centre counts five times; the border stays."""
    inner = images[..., 1:-1, 1:-1]
    smooth = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13
    result = images.clone()
    result[..., 1:-1, 1:-1] = torch.lerp(smooth, inner, _factor(magnitude))
    return result


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """The highest 4 to 7 bits of the 8 of each value."""
    unit = 2 ** (4 - (4 * magnitude).floor())
    return ((255 * images).round_() / unit).floor_() * (unit / 255)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Values from a threshold on are inverted."""
    return torch.where(255 * images >= 256 * magnitude, 1 - images, images)


VALUES = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
}
"""The operations that change values: images (B, 3, H, W) and magnitudes (B, 1, 1, 1) in [0, 1) to images."""


def _factor(magnitude: Tensor) -> Tensor:
    return 0.05 + 0.9 * magnitude


def luma(images: Tensor) -> Tensor:
    """Grey (B, 1, H, W) by the weights of ITU-R 601."""
    red, green, blue = images.unbind(1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze_(1)


def inverse_maps(strength: Tensor, share: int) -> Tensor:
    """Maps (5 share, 2, 3) from output to input points of rotation, shears in x and y, shifts in x and y.

    `strength` (5 share,) in [-1, 1] is relative to the largest ones; each operation has `share` of them. A point is
    (x, y, 1) in sides of the image, from its centre; a rotation keeps angles on square images alone.
    """
    rotate, shear_x, shear_y, shift_x, shift_y = strength.view(_MOVING, share).unbind()
    maps = strength.new_zeros(_MOVING, share, 2, 3)
    maps[:, :, 0, 0] = maps[:, :, 1, 1] = 1
    angle = rotate * (30 * torch.pi / 180)
    maps[0, :, 0, 0] = maps[0, :, 1, 1] = angle.cos()
    maps[0, :, 0, 1], maps[0, :, 1, 0] = -angle.sin(), angle.sin()
    # Pillow shears around the corner, which is half a side away.
    maps[1, :, 0, 1], maps[1, :, 0, 2] = 0.3 * shear_x, 0.15 * shear_x
    maps[2, :, 1, 0], maps[2, :, 1, 2] = 0.3 * shear_y, 0.15 * shear_y
    maps[3, :, 0, 2], maps[4, :, 1, 2] = 0.3 * shift_x, 0.3 * shift_y
    return maps.flatten(0, 1)


def move(images: Tensor, maps: Tensor) -> Tensor:
    """Each image where its map (B, 2, 3) of `inverse_maps` puts it: nearest neighbour, black outside."""
    height, width = images.shape[-2:]
    scaled = torch.cat([maps[..., :2], 2 * maps[..., 2:]], dim=2)
    grid = F.affine_grid(scaled, [len(images), 3, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def cutout(images: Tensor, generator: torch.Generator, largest: float = 0.5) -> Tensor:
    """A grey square at a random place of each image, its side up to `largest` of the width, drawn evenly.

    The square may reach over the border. As in FixMatch; the grey is 0.5, which the paper does not state.
    """
    batch, _, height, width = images.shape
    draw = torch.rand(3, batch, 1, generator=generator, device=images.device, dtype=images.dtype)
    half = draw[0] * (0.5 * largest * width)
    rows, columns = (
        (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5 - centre * side).abs() < half
        for side, centre in ((height, draw[1]), (width, draw[2]))
    )
    return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), _GREY)
