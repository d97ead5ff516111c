"""How the methods of a task are trained: the recipe, its optimiser, and schedules of the learning rate.

A schedule maps the used share of a training, in [0, 1], to a multiple of the recipe's learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

Schedule = Callable[[float], float]


def cosine_7_16(share: float) -> float:
    """cos(7 pi / 16 share), from 1 to about 0.2, as FixMatch has it (Sohn et al., 2020, arXiv:2001.07685)."""
    return math.cos(7.0 * math.pi / 16.0 * share)


def constant(share: float) -> float:
    return 1.0


def linear(share: float) -> float:
    """From 1 to 0."""
    return max(0.0, 1.0 - share)


def half_cosine(warmup: float = 0.0) -> Schedule:
    """A linear rise from 0 over the share `warmup`, then half a cosine period down to 0."""

    def schedule(share: float) -> float:
        if share < warmup:
            return share / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (share - warmup) / (1.0 - warmup)))

    return schedule


def steps(number: int, gamma: float) -> Schedule:
    """`number` equal parts, the rate of each `gamma` times that of the one before."""

    def schedule(share: float) -> float:
        return gamma ** min(math.floor(share * number), number - 1)

    return schedule


@dataclass(frozen=True)
class Recipe:
    """How every method of a task is trained, the supervised baseline included.

    `schedule` gives the multiple of `lr` at each share of the budget, by default a cosine that ends at cos(7 pi / 16);
    `ema` is the decay of the averaged weights that are evaluated (0 evaluates the trained weights themselves);
    `points` is the number of evaluations. `momentum` and `nesterov` are those of `sgd`, `beta2` is that of `adam` and
    `adamw`. Gradients longer than `max_norm`, taken over all that is trained, are shortened to it; 0 leaves them alone.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    ema: float = 0.999
    points: int = 10
    nesterov: bool = True
    schedule: Schedule = cosine_7_16
    max_norm: float = 0.0
    beta2: float = 0.999


def make_optimizer(recipe: Recipe, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameters`, tensors or groups of them; the learning rate is set at each step."""
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        return torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay, nesterov=nesterov
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.lr, betas=(0.9, recipe.beta2), weight_decay=decay)
