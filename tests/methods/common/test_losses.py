from __future__ import annotations

import math

import pytest
import torch

from selfbench.methods.common.losses import entropy
from selfbench.suite.protocols.adaptation import AdaptationTask

confident_cross_entropy = AdaptationTask().pseudo_label_loss


def test_entropy_equals_its_definition_and_is_bounded_by_log_k() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    expected = [-sum(q * math.log(q) for q in row) for row in p.tolist()]
    assert entropy(p.log() + 5.0).tolist() == pytest.approx(expected, abs=1e-12)
    assert expected[1] == pytest.approx(math.log(3))


def test_entropy_and_its_gradient_stay_finite_for_saturated_logits() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = entropy(logits).sum()
    value.backward()
    assert value.item() == 0.0
    assert torch.isfinite(logits.grad).all()


def test_entropy_gradient_equals_central_differences() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(entropy, logits.requires_grad_(True))


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, (0, 1)), (0.8, (0,)), (0.95, ())])
def test_confident_cross_entropy_is_a_mean_over_all_examples(threshold: float, kept: tuple[int, ...]) -> None:
    target = torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64)  # confidences 0.881 and 0.622
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=torch.float64)  # wrong by 2 and by 1
    losses = (math.log(1 + math.exp(2)), math.log(1 + math.exp(1)))
    expected = sum(losses[index] for index in kept) / 2
    assert confident_cross_entropy(logits, target, threshold).item() == pytest.approx(expected, abs=1e-12)


def test_confidence_equal_to_the_threshold_is_kept() -> None:
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert confident_cross_entropy(even, even, 0.5).item() == pytest.approx(math.log(2))


def test_no_gradient_flows_into_the_target() -> None:
    logits, target = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    confident_cross_entropy(logits, target, 0.0).backward()
    assert target.grad is None
    assert logits.grad.abs().sum() > 0
