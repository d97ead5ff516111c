from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.alignment.coral import Coral, coral_distance, dense_groups


def _moments(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of single examples, entry by entry."""
    n, width = len(rows), len(rows[0])
    mean = sum(rows) / n
    covariance = torch.stack(
        [
            torch.stack(
                [sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / max(n - 1, 1) for j in range(width)]
            )
            for i in range(width)
        ]
    )
    return mean, covariance


def _slow_distance(features: Tensor, domains: list[int]) -> Tensor:
    moments = [_moments([f for f, d in zip(features, domains, strict=True) if d == one]) for one in sorted({*domains})]
    pairs = [((a - b) ** 2).mean() + ((c - d) ** 2).mean() for (a, c), (b, d) in itertools.combinations(moments, 2)]
    return sum(pairs) / len(pairs) if pairs else features.sum() * 0


@pytest.mark.parametrize("domains", [[0, 0, 0, 1, 1, 1], [7, 3, 7, 3, 3, 9], [2, 2, 2, 2, 2, 5], [4] * 6])
def test_the_distance_and_its_gradient_equal_a_loop_over_pairs(domains: list[int]) -> None:
    features = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for most in (len({*domains}), 5):
        mine = coral_distance(features, dense_groups(torch.tensor(domains)), most)
        slow = _slow_distance(features, domains)
        assert mine.item() == pytest.approx(slow.item(), abs=1e-12)
        own, expected = (torch.autograd.grad(value, features)[0] for value in (mine, slow))
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)
    assert (len({*domains}) == 1) == (mine.item() == 0)


def test_known_moments_give_the_known_distance() -> None:
    """Means (0, 0) and (3, 4); covariances 2 I and 8 I: (9 + 16) / 2 + 2 * 36 / 4."""
    one = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64) * (3 / 4) ** 0.5
    two = 2 * one + torch.tensor([3.0, 4.0], dtype=torch.float64)
    groups = torch.tensor([0] * 4 + [1] * 4)
    assert coral_distance(torch.cat([one, two]), groups, 2).item() == pytest.approx(25 / 2 + 18, abs=1e-12)


def test_groups_are_numbered_by_their_first_example() -> None:
    assert dense_groups(torch.tensor([9, 9, 2, 9, 5, 2])).tolist() == [0, 0, 1, 0, 2, 1]
    assert dense_groups(torch.tensor([3])).tolist() == [0]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], weight: float
) -> None:
    method = Coral(weight=weight)
    labeled, unlabeled = make_batches(make_view(method))
    parameters = list(method.model.parameters())
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        z = method.model(x[None])[0]
        supervised = supervised + z.exp().sum().log() - z[y]
    rows = torch.stack([nn.Sequential(*list(method.model)[:-1])(x[None])[0] for x in [*labeled.weak, *unlabeled.weak]])
    domains = [*labeled.domains.tolist(), *unlabeled.domains.tolist()]
    # Domain 2 has labelled and unlabelled examples: they are one group.
    assert set(labeled.domains.tolist()) & set(unlabeled.domains.tolist()) == {2}
    slow = supervised / len(labeled) + weight * _slow_distance(rows, domains)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    expected = torch.autograd.grad(slow, parameters)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
