"""Random views of a batch for test-time adaptation: the augmentation of CoTTA and its kin, fused and batched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_GRAY = (0.2989, 0.587, 0.114)
"""Luma weights of red, green and blue."""
_NEGLIGIBLE = 2.0**-25
"""A blur weight below it does not change a pixel of [0, 1] in single precision."""


@dataclass(frozen=True)
class View:
    """What is drawn for one view of a batch: every image of the batch gets the same.

    `order` holds the colour changes in the order in which they are applied: 0 brightness, 1 contrast, 2 saturation,
    3 hue, 4 gamma. `hue` is in turns, `angle` in degrees, `shift` in pixels (x, y), `sigma` of the blur in pixels.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    gamma: float
    order: tuple[int, ...]
    angle: float
    scale: float
    shift: tuple[int, int]
    sigma: float
    flip: bool


def draw_views(n: int, height: int, width: int, generator: torch.Generator, *, soft: bool = False) -> list[View]:
    """Draw the parameters of `n` views from the ranges of CoTTA (arXiv:2203.13591, supplementary; its release).

    Their host-side values decide the order of the colour changes, so that this waits once for the generator's device.
    """
    rows = torch.rand((n, 16), generator=generator, device=generator.device, dtype=torch.float64).tolist()

    def between(low: float, high: float, u: float) -> float:
        return low + (high - low) * u

    def around(centre: float, hard: float, gentle: float, u: float) -> float:
        radius = gentle if soft else hard
        return between(centre - radius, centre + radius, u)

    # A sixteenth of the padded image, whose padding is half an image on each side.
    reach = [(side + 2 * (side // 2)) / 16 for side in (width, height)]
    return [
        View(
            brightness=around(1.0, 0.4, 0.2, u[0]),
            contrast=around(1.0, 0.3, 0.15, u[1]),
            saturation=around(1.0, 0.5, 0.25, u[2]),
            hue=around(0.0, 0.06, 0.03, u[3]),
            gamma=around(1.0, 0.3, 0.15, u[4]),
            order=tuple(sorted(range(5), key=lambda i, u=u: u[5 + i])),  # type: ignore[misc]
            angle=around(0.0, 15.0, 8.0, u[10]),
            scale=around(1.0, 0.1, 0.05, u[11]),
            shift=(round(around(0.0, reach[0], reach[0], u[12])), round(around(0.0, reach[1], reach[1], u[13]))),
            sigma=between(0.001, 0.25 if soft else 0.5, u[14]),
            flip=u[15] < 0.5,
        )
        for u in rows
    ]


@torch.no_grad()
def random_views(
    images: Tensor, generator: torch.Generator, n: int = 1, *, gaussian_std: float = 0.005, soft: bool = False
) -> Tensor:
    """`n` random views of `images` (B, C, H, W) in [0, 1] -> (n, B, C, H, W) in [0, 1]; C is 3, or 1 for gray images.

    Brightness, contrast, saturation, hue and gamma in random order, edge padding, rotation, scaling and translation,
    a Gaussian blur of 5 x 5, centre crop, horizontal flip, Gaussian noise, clipping (CoTTA, arXiv:2203.13591).
    Parameters are drawn once per view and batch, noise per pixel. `soft` halves the ranges. Gray images have no
    saturation and no hue.
    """
    views = draw_views(n, images.size(2), images.size(3), generator, soft=soft)
    return render_views(images, views, generator, gaussian_std=gaussian_std)


@torch.no_grad()
def render_views(
    images: Tensor, views: Sequence[View], generator: torch.Generator, *, gaussian_std: float = 0.005
) -> Tensor:
    """The given `views` of `images` (B, C, H, W) in [0, 1] -> (V, B, C, H, W); noise comes from `generator`.

    Noise is drawn view by view, so that any split of `views` over several calls gives the same numbers.
    """
    out = images.new_empty((len(views), *images.shape))
    # On a CPU one view at a time stays in the cache; on a GPU all views share each launch.
    together = 1 if images.device.type == "cpu" else len(views)
    for start in range(0, len(views), together):
        part = slice(start, start + together)
        _render(images, views[part], out[part])
    if gaussian_std > 0.0:
        for view in out:
            noise = torch.randn(view.shape, generator=generator, device=view.device, dtype=view.dtype)
            view.add_(noise, alpha=gaussian_std)
    return out.clamp_(0.0, 1.0)


def _render(images: Tensor, views: Sequence[View], out: Tensor) -> None:
    """Write the views without noise into `out` (V, B, C, H, W)."""
    # (V, C, B, H, W): each colour is one block, which the colour changes combine.
    x = images.transpose(0, 1).expand(len(views), -1, -1, -1, -1).clone(memory_format=torch.contiguous_format)
    x.clamp_(0.0, 1.0)
    for position in range(5):
        for kind, change in enumerate(_CHANGES):
            chosen = [i for i, view in enumerate(views) if view.order[position] == kind]
            if len(chosen) == len(views):
                change(x, views)
            elif chosen:
                index = torch.tensor(chosen, device=x.device)
                part = x[index]
                change(part, [views[i] for i in chosen])
                x[index] = part
    _blur(*_warp(x, views), views, out)


def _column(values: Sequence[float], x: Tensor) -> Tensor | float:
    """One number per view, to be combined with x (V, C, B, H, W)."""
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True).view(-1, 1, 1, 1, 1)


def _brightness(x: Tensor, views: Sequence[View]) -> None:
    x.mul_(_column([view.brightness for view in views], x)).clamp_(0.0, 1.0)


def _contrast(x: Tensor, views: Sequence[View]) -> None:
    factor = _column([view.contrast for view in views], x)
    mean = x.mean(dim=(3, 4), keepdim=True)
    if x.size(1) == 3:
        # The mean of the gray image is the gray of the mean colours.
        red, green, blue = mean.unbind(1)
        mean = (_GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue).unsqueeze(1)
    x.mul_(factor).add_((1.0 - factor) * mean).clamp_(0.0, 1.0)


def _saturation(x: Tensor, views: Sequence[View]) -> None:
    if x.size(1) == 1:
        return
    factor = _column([view.saturation for view in views], x)
    red, green, blue = x.unbind(1)
    gray = (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2]).unsqueeze(1)
    x.mul_(factor).add_(gray.mul_(1.0 - factor)).clamp_(0.0, 1.0)


def _hue(x: Tensor, views: Sequence[View]) -> None:
    if x.size(1) == 1:
        return
    turn = _column([view.hue for view in views], x)
    turn_hue(x, turn[:, 0] if isinstance(turn, Tensor) else turn)


def turn_hue(x: Tensor, turn: Tensor | float) -> None:
    """Turn the hue of x (N, 3, ...) in [0, 1] in place, by less than a sixth of a turn, as (N, ...) or a number.

    Without the way to HSV and back: with M and m the largest and smallest colour, c = M - m and h the hue in sixths of
    a turn, the colour whose own hue is h_0 becomes M - c clip(d - 1, 0, 1), d the distance of h and h_0 on the circle.
    """
    red, green, blue = x.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    # Masks of the pixels' own type: on a CPU a branch on a Boolean one is twenty times slower.
    is_red, is_green = red.clone().eq_(largest), green.clone().eq_(largest)
    h = (red - green).add_(chroma, alpha=4.0).lerp_((blue - red).add_(chroma, alpha=2.0), is_green)
    h.lerp_(green - blue, is_red)
    # Where the chroma is 0 so is the numerator.
    h.div_(chroma.clamp_min(torch.finfo(x.dtype).tiny)).add_(6.0 * turn)
    for channel, own in enumerate((0.0, 2.0, 4.0)):
        # h lies in (-2, 6): with e = |h - h_0| <= 6, clip(min(e, 6 - e) - 1) = clip(2 - |e - 3|).
        amount = (h - own).abs_().sub_(3.0).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)
        torch.addcmul(largest, chroma, amount, value=-1.0, out=x[:, channel])


def _gamma(x: Tensor, views: Sequence[View]) -> None:
    # The floor is that of the release: it keeps the gradient of the power finite.
    x.clamp_(1e-8, 1.0).log2_().mul_(_column([view.gamma for view in views], x)).exp2_()


_CHANGES = (_brightness, _contrast, _saturation, _hue, _gamma)


def _warp(x: Tensor, views: Sequence[View]) -> tuple[Tensor, int]:
    """Sample x (V, C, B, H, W) at the rotated, scaled, shifted and flipped pixels: (V, C, B, H + 2r, W + 2r), and r.

    Clamping coordinates to the border equals padding by the edge as long as nothing beyond the padding is seen, which
    the ranges exclude for sides of 16 and more. r is the radius of the blur to come. The blur is symmetric, so that
    the flip may be done here.
    """
    height, width = x.shape[3:]
    widest = max(view.sigma for view in views)
    radius = sum(math.exp(-0.5 * (tap / widest) ** 2) > _NEGLIGIBLE for tap in (1, 2))
    # The inverse map of output pixels p, from the centre: R(-angle) (p - shift) / scale, in units of half a side.
    rows = []
    for view in views:
        cos, sin = (f(math.radians(view.angle)) / view.scale for f in (math.cos, math.sin))
        sign = -1.0 if view.flip else 1.0
        dx, dy = view.shift
        rows += [
            [cos * sign * 2 / width, sin * 2 / width, -(cos * dx + sin * dy) * 2 / width],
            [-sin * sign * 2 / height, cos * 2 / height, (sin * dx - cos * dy) * 2 / height],
        ]
    matrix = torch.tensor(rows, dtype=x.dtype).to(x.device, non_blocking=True).view(-1, 1, 1, 2, 3)
    across, down = (
        torch.arange(side + 2 * radius, device=x.device, dtype=x.dtype) - (side + 2 * radius - 1) / 2
        for side in (width, height)
    )
    grid = across.view(1, 1, -1, 1) * matrix[..., 0] + down.view(1, -1, 1, 1) * matrix[..., 1] + matrix[..., 2]
    out = F.grid_sample(x.flatten(1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.view(*x.shape[:3], *out.shape[2:]), radius


def _blur(x: Tensor, radius: int, views: Sequence[View], out: Tensor) -> None:
    """Blur x (V, C, B, H + 2r, W + 2r) into `out` (V, B, C, H, W), one direction after the other."""
    target = out.transpose(1, 2)
    if radius == 0:
        target.copy_(x)
        return
    taps = [[math.exp(-0.5 * (tap / view.sigma) ** 2) for tap in range(radius + 1)] for view in views]
    sums = [row[0] + 2 * sum(row[1:]) for row in taps]
    weights = [
        _column([row[tap] / total for row, total in zip(taps, sums, strict=True)], x) for tap in range(radius + 1)
    ]
    x = _weighted(x, 4, radius, weights)
    target.copy_(_weighted(x, 3, radius, weights))


def _weighted(x: Tensor, dim: int, radius: int, weights: Sequence[Tensor | float]) -> Tensor:
    """The symmetric blur along one dimension, which becomes 2r shorter."""
    length = x.size(dim) - 2 * radius
    out = x.narrow(dim, radius, length) * weights[0]
    for tap in range(1, radius + 1):
        pair = x.narrow(dim, radius - tap, length) + x.narrow(dim, radius + tap, length)
        out.add_(pair.mul_(weights[tap]))
    return out
