"""Batched augmentations of colour images (B, 3, H, W) in [0, 1], as WILDS 2.0 has them; randomness from the generator.

The published ones work on single 8-bit pictures; here values are not rounded in between, which moves a pixel by less
than 2/255.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_PHOTOMETRIC = 9
"""Operations from this number on move pixels, those before change their values; see `fixmatch_augment`."""
_OPERATIONS = 14
_HOLE = (125 / 255, 123 / 255, 114 / 255)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image from left to right with probability 1/2."""
    turned = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(turned, images.flip(3), images)


def quarter_turn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image by 0, 90, 180 or 270 degrees; images are square."""
    times = torch.randint(0, 4, (len(images), 1, 1, 1), generator=generator, device=images.device)
    result = images
    for number in range(1, 4):
        result = torch.where(times == number, images.rot90(number, (2, 3)), result)
    return result


def fixmatch_augment(images: Tensor, generator: torch.Generator, operations: int = 2) -> Tensor:
    """`operations` of fourteen, drawn with replacement for each image, one after the other, and then a grey square.

    The pool of FixMatch (Sohn et al. 2020, arXiv:2001.07685, table 12) with the ranges of WILDS 2.0's public code, each
    strength drawn evenly: identity, autocontrast, equalize; brightness, colour, contrast and sharpness with factors
    from 0.05 to 0.95; posterize to 4 to 7 bits; solarize from a threshold in [0, 256]; rotation by up to 30
    degrees, shears up to 0.3 and shifts up to 0.3 of the picture along each axis, black outside, nearest neighbour. The
    square's side is drawn from 0 to half of the width, its centre anywhere.
    """
    batch, device = len(images), images.device
    for _ in range(operations):
        operation = torch.randint(0, _OPERATIONS, (batch,), generator=generator, device=device)
        strength = torch.rand(batch, generator=generator, device=device)
        images = apply(images, operation, strength)
    size, x, y = torch.rand(3, batch, generator=generator, device=device)
    return grey_square(images, 0.5 * size, x, y)


def apply(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """One operation an image: `operation` (B,) its number, `strength` (B,) in [0, 1) its place in the range.

    All are computed for all images and one is kept, so that nothing waits for the host.
    """
    s = strength.view(-1, 1, 1, 1)
    factor = 0.05 + 0.9 * s
    changed = [
        images,
        autocontrast(images),
        equalize(images),
        factor * images,
        torch.lerp(grey(images), images, factor),
        torch.lerp(grey(images).mean(dim=(2, 3), keepdim=True), images, factor),
        torch.lerp(smooth(images), images, factor),
        posterize(images, 4 + (4 * s).floor()),
        torch.where(255 * images >= 256 * s, 1 - images, images),
    ]
    which = operation.view(-1, 1, 1, 1)
    result = warp(images, operation, 2 * strength - 1)
    for number, values in enumerate(changed):
        result = torch.where(which == number, values, result)
    return result


def grey(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) by the weights of ITU-R 601."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to [0, 1]; a channel of one value stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram of 256 values flattened, by the integer rule of Pillow."""
    batch, channels, height, width = images.shape
    rows = batch * channels
    values = (255 * images).round().long().reshape(rows, height * width)
    offset = 256 * torch.arange(rows, device=images.device)[:, None]
    counts = torch.bincount((values + offset).flatten(), minlength=256 * rows).view(rows, 256)
    up_to = counts.cumsum(dim=1)
    present = (counts > 0) * torch.arange(1, 257, device=images.device)
    last = counts.gather(1, present.argmax(dim=1, keepdim=True))
    step = (height * width - last) // 255
    table = ((step // 2 + up_to - counts) // step.clamp_min(1)).clamp_max(255)
    flat = torch.where(step > 0, table.gather(1, values), values)
    return flat.reshape(images.shape).to(images.dtype) / 255


def smooth(images: Tensor) -> Tensor:
    """A mean over 3 x 3 pixels whose centre counts five times; the border stays."""
    kernel = images.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=3)
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest `bits` (B, 1, 1, 1) of the 8 of each value."""
    unit = 2 ** (8 - bits)
    return ((255 * images).round() / unit).floor() * unit / 255


def warp(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Operations 9 to 13 at `strength` (B,) in [-1, 1]: rotation, shear in x and y, shift in x and y.

    Output pixel (u, v) shows what lies at (a u + b v + c, d u + e v + f), in pixels from the upper left corner.
    """
    height, width = images.shape[-2:]
    rotation, shear_x, shear_y, shift_x, shift_y = (
        strength * (operation == _PHOTOMETRIC + number) for number in range(5)
    )
    angle = rotation * (-30 * torch.pi / 180)
    a = e = angle.cos()
    b, d = angle.sin() + 0.3 * shear_x, -angle.sin() + 0.3 * shear_y
    # Rotations turn around the centre, shears around the corner.
    c = 0.3 * width * shift_x + width / 2 * (1 - a) - height / 2 * angle.sin()
    f = 0.3 * height * shift_y + height / 2 * (1 - e) + width / 2 * angle.sin()
    tall, wide = height / width, width / height
    rows = [
        torch.stack([a, b * tall, a + b * tall + 2 * c / width - 1], dim=1),
        torch.stack([d * wide, e, d * wide + e + 2 * f / height - 1], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def grey_square(images: Tensor, size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cover a square of side `size` (B,) times the width around (x, y), all shares of the picture, with mid grey."""
    height, width = images.shape[-2:]
    half = size * width / 2
    columns, rows = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    left, top = ((place * length - half).clamp_min(0).floor() for place, length in ((x, width), (y, height)))
    right, bottom = left + (2 * half), top + (2 * half)
    inside_x = (columns >= left[:, None]) & (columns <= right[:, None])
    inside_y = (rows >= top[:, None]) & (rows <= bottom[:, None])
    colour = images.new_tensor(_HOLE).view(3, 1, 1)
    return torch.where(inside_y[:, None, :, None] & inside_x[:, None, None, :], colour, images)
