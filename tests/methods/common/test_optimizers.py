from __future__ import annotations

import pytest
import torch
from torch import nn

from selfbench.methods.common.optimizers import make_optimizer


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_two_steps_equal_the_rule_by_hand(kind: str) -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    value = parameter.detach().clone()
    updater = make_optimizer([parameter], kind, 0.1)
    first, second = torch.zeros(2), torch.zeros(2)
    for step, g in enumerate((torch.tensor([0.5, 1.0]), torch.tensor([-0.2, 3.0])), start=1):
        parameter.grad = g.double()
        updater.step()
        if kind == "adam":
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            value = value - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        else:
            first = 0.9 * first + g
            value = value - 0.1 * (g + 0.9 * first)
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-6, atol=1e-6)


def test_groups_keep_their_own_rates() -> None:
    a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    updater = make_optimizer([{"params": [a], "lr": 0.5}, {"params": [b]}], "sgd", 0.1)
    assert [group["lr"] for group in updater.param_groups] == [0.5, 0.1]
    with pytest.raises(ValueError, match="unknown optimiser"):
        make_optimizer([a], "lion", 0.1)
