from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfbench.methods.common.consistency import soft_cross_entropy, symmetric_cross_entropy
from selfbench.methods.common.losses import entropy


def _softmax(row: list[float]) -> list[float]:
    parts = [math.exp(value) for value in row]
    return [part / sum(parts) for part in parts]


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("loss", "mirrored"), [(soft_cross_entropy, 0.0), (symmetric_cross_entropy, 0.5)])
def test_values_equal_sums_by_hand(pair: tuple[Tensor, Tensor], loss: Callable[..., Tensor], mirrored: float) -> None:
    for a, b, value in zip(*pair, loss(*pair), strict=True):
        p, q = _softmax(a.tolist()), _softmax(b.tolist())
        forward = -sum(q_k * math.log(p_k) for p_k, q_k in zip(p, q, strict=True))
        backward = -sum(p_k * math.log(q_k) for p_k, q_k in zip(p, q, strict=True))
        assert value.item() == pytest.approx((1 - mirrored) * forward + mirrored * backward, rel=1e-12)


@pytest.mark.parametrize("loss", [soft_cross_entropy, symmetric_cross_entropy])
def test_gradient_flows_into_the_student_alone(pair: tuple[Tensor, Tensor], loss: Callable[..., Tensor]) -> None:
    student, teacher = (logits.requires_grad_(True) for logits in pair)
    loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher.detach()), (student,))


def test_of_a_distribution_with_itself_is_its_entropy(pair: tuple[Tensor, Tensor]) -> None:
    for loss in (soft_cross_entropy, symmetric_cross_entropy):
        torch.testing.assert_close(loss(pair[0], pair[0]), entropy(pair[0]))


def test_finite_where_a_probability_is_zero() -> None:
    extreme = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    value = symmetric_cross_entropy(extreme, -extreme.detach())
    value.sum().backward()
    assert value.item() == pytest.approx(400.0)
    assert torch.isfinite(extreme.grad).all()
