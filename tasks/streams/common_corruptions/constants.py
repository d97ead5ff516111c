"""The published strengths of each corruption, severities 1 to 5, by the side of the images in pixels.

32: CIFAR-10-C and CIFAR-100-C; 64: Tiny-ImageNet-C; 224: ImageNet-C. Source: the authors' release of the benchmarks
(github.com/hendrycks/robustness, folder ImageNet-C/create_c). The meaning of each tuple is said once, at the keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Levels = tuple[Any, Any, Any, Any, Any]

NAMES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 corruptions of the benchmark, in its order."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 4 corruptions held out for choosing hyper-parameters."""

SEVERITIES = (1, 2, 3, 4, 5)
SIDES = (32, 64, 224)

MUD, WATER = True, False

CIFAR: dict[str, Levels] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, of values in [0, 1]
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values that become 0 or 255
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),  # standard deviation, relative to the value
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # sigma in pixels
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # sigma, reach, rounds
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),  # radius, sigma of the disk's edge
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # radius, sigma along the path
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),  # stop (exclusive), step
    # snow: mean and deviation of the flakes, their zoom, threshold, radius and sigma of motion, weight of the picture
    "snow": (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weight of the picture, of the frost
    "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),  # strength, decay of roughness per octave
    # spatter: mean and deviation of the drops, sigma, threshold, strength (water) or sigma of the mask (mud), kind
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, WATER),
        (0.65, 0.1, 0.8, 0.7, 0.5, WATER),
        (0.65, 0.3, 1.0, 0.69, 0.5, WATER),
        (0.65, 0.1, 0.7, 0.69, 0.6, MUD),
        (0.65, 0.1, 0.5, 0.68, 0.6, MUD),
    ),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of HSV
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance to the channel's mean
    "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),  # factor and offset of HSV's saturation
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # side of the small picture, relative
    # elastic: largest displacement before smoothing, sigma of its smoothing, reach of the affine map's three points;
    # in units of ELASTIC_UNIT pixels
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
}

TINY_IMAGENET: dict[str, Levels] = {
    "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": (250, 100, 50, 30, 15),
    "impulse_noise": (0.01, 0.02, 0.05, 0.08, 0.14),
    "speckle_noise": (0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": (0.5, 0.75, 1.0, 1.25, 1.5),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "defocus_blur": ((0.5, 0.6), (1.0, 0.1), (1.5, 0.1), (2.5, 0.01), (3.0, 0.1)),
    "motion_blur": ((10, 1.0), (10, 1.5), (10, 2.0), (10, 2.5), (12, 3.0)),
    "zoom_blur": CIFAR["zoom_blur"],
    "snow": (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "frost": ((1.0, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    "fog": ((0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, WATER),
        (0.65, 0.1, 0.8, 0.7, 0.6, WATER),
        (0.65, 0.3, 1.0, 0.69, 0.6, WATER),
        (0.65, 0.1, 0.7, 0.68, 0.6, MUD),
        (0.65, 0.1, 0.5, 0.67, 0.6, MUD),
    ),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2)),
    "jpeg_compression": (65, 58, 50, 40, 25),
    "pixelate": (0.9, 0.8, 0.7, 0.6, 0.5),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
}

IMAGENET: dict[str, Levels] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "defocus_blur": ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    "motion_blur": ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    "spatter": (
        (0.65, 0.3, 4.0, 0.69, 0.6, WATER),
        (0.65, 0.3, 3.0, 0.68, 0.6, WATER),
        (0.65, 0.3, 2.0, 0.68, 0.5, WATER),
        (0.65, 0.3, 1.0, 0.65, 1.5, MUD),
        (0.67, 0.4, 1.0, 0.65, 1.5, MUD),
    ),
    "brightness": TINY_IMAGENET["brightness"],
    "contrast": TINY_IMAGENET["contrast"],
    "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "elastic_transform": ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
}

CONSTANTS: dict[int, dict[str, Levels]] = {32: CIFAR, 64: TINY_IMAGENET, 224: IMAGENET}

ELASTIC_UNIT = {32: 32, 64: 64, 224: 244}
"""The published ImageNet-C used 244, not 224, for its lengths."""

FOG_SIDE = {32: 32, 64: 64, 224: 256}
"""Side of the cloud, a power of two; the picture takes its upper left corner."""

FROST_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}
"""The frost pictures are shrunk by this factor before a piece is cut out."""

FROST_PICTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The published code draws from the first five of its six pictures."""


def zoom_factors(stop: float, step: float) -> list[float]:
    """The enlargements from 1 on; as floating-point sums, since the crop's size is their rounded-up quotient."""
    return [float(factor) for factor in np.arange(1, stop, step)]
