"""Recipes: optimisers equal those of torch, schedules equal those of torch and transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from selfbench import Recipe
from selfbench.suite.protocols.optimisation import constant, cosine_7_16, half_cosine, linear, make_optimizer, steps

TOTAL = 60


def rates(make: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (constant, lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        (linear, lambda optimizer: get_linear_schedule_with_warmup(optimizer, 0, TOTAL)),
        (half_cosine(), lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 0, TOTAL)),
        (half_cosine(0.1), lambda optimizer: get_cosine_schedule_with_warmup(optimizer, TOTAL // 10, TOTAL)),
        (steps(12, 0.96), lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, TOTAL // 12, 0.96)),
    ],
)
def test_schedules_are_those_of_the_libraries(schedule: object, reference: object) -> None:
    # The middle of each step: its borders are at the mercy of rounding.
    shares = [(step + (0.0 if schedule in (constant, linear) else 1e-9)) / TOTAL for step in range(TOTAL)]
    assert [schedule(share) for share in shares] == pytest.approx(rates(reference), abs=1e-7)  # type: ignore[operator]


def test_the_default_schedule_is_the_one_of_fixmatch() -> None:
    assert Recipe().schedule is cosine_7_16
    assert [cosine_7_16(share) for share in (0.0, 0.3, 1.0)] == [
        math.cos(7.0 * math.pi / 16.0 * share) for share in (0.0, 0.3, 1.0)
    ]


def test_a_schedule_of_steps_ends_with_its_last_step() -> None:
    assert steps(3, 0.5)(1.0) == 0.25


@pytest.mark.parametrize(
    ("recipe", "kind", "expected"),
    [
        (Recipe(), torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
        (Recipe(nesterov=False), torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        (Recipe(momentum=0.0), torch.optim.SGD, {"momentum": 0.0, "nesterov": False}),
        (Recipe(optimizer="adam", weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
        (Recipe(optimizer="adamw", weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_optimisers(recipe: Recipe, kind: type, expected: dict[str, object]) -> None:
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(2))])
    assert type(optimizer) is kind
    assert expected.items() <= optimizer.param_groups[0].items()
