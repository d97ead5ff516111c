from __future__ import annotations

import math

import torch

from selfbench.methods.common.weighted_likelihood import (
    certainty_and_diversity,
    correct_prior,
    mutual_cross_entropy,
    soft_likelihood_ratio,
)

LOGITS = 2.0 * torch.randn(7, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def _softmax(row: list[float]) -> list[float]:
    exp = [math.exp(value) for value in row]
    return [value / sum(exp) for value in exp]


def test_weights_equal_a_loop() -> None:
    average = _softmax([0.1, 0.9, -0.4, 0.3, 0.0])
    p = [_softmax(row) for row in LOGITS.tolist()]
    u = []
    for row in p:
        dot = sum(a * b for a, b in zip(row, average, strict=True))
        u.append(1 - dot / math.sqrt(sum(a * a for a in row) * sum(b * b for b in average)))
    v = [sum(a * math.log(a) for a in row) for row in p]
    u, v = ([(x - min(values)) / (max(values) - min(values)) for x in values] for values in (u, v))
    kept = [x >= sum(u) / len(u) for x in u]
    expected = [math.exp(3 * x * y) if keep else 0.0 for x, y, keep in zip(u, v, kept, strict=True)]
    weights, chosen = certainty_and_diversity(LOGITS, torch.tensor(average, dtype=torch.float64), 1 / 3)
    assert chosen.tolist() == kept
    assert 0 < sum(kept) < 7
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_a_single_sample_is_kept_with_weight_one() -> None:
    weights, kept = certainty_and_diversity(LOGITS[:1], torch.full((5,), 0.2, dtype=torch.float64), 1 / 3)
    assert weights.tolist() == [1.0]
    assert kept.tolist() == [True]


def test_likelihood_ratio_equals_a_loop_and_is_clipped() -> None:
    logits = torch.cat([LOGITS, torch.tensor([[20.0, 0, 0, 0, 0]], dtype=torch.float64)])
    expected = []
    for row in logits.tolist():
        p = [min(value, 0.99) for value in _softmax(row)]
        expected.append(-sum(a * math.log(a / (1 - a) + 1e-5) for a in p))
    torch.testing.assert_close(soft_likelihood_ratio(logits), torch.tensor(expected, dtype=torch.float64))


def test_mutual_cross_entropy_equals_a_loop_and_both_sides_have_gradients() -> None:
    a, b = LOGITS[:3].clone().requires_grad_(), LOGITS[3:6].clone().requires_grad_()
    value = mutual_cross_entropy(a, b)
    for i in range(3):
        p, q = _softmax(a[i].tolist()), _softmax(b[i].tolist())
        expected = -0.5 * sum(x * math.log(y) + y * math.log(x) for x, y in zip(p, q, strict=True))
        assert math.isclose(value[i].item(), expected, rel_tol=1e-12)
    value.sum().backward()
    assert a.grad.abs().max() > 1e-3
    assert b.grad.abs().max() > 1e-3


def test_the_correction_multiplies_logits_by_the_smoothed_prior() -> None:
    p = [_softmax(row) for row in LOGITS.tolist()]
    prior = [sum(column) / 7 for column in zip(*p, strict=True)]
    smooth = (1 / 5) / max(prior)
    expected = [
        [value * (q + smooth) / (1 + 5 * smooth) for value, q in zip(row, prior, strict=True)]
        for row in LOGITS.tolist()
    ]
    torch.testing.assert_close(correct_prior(LOGITS), torch.tensor(expected, dtype=torch.float64))
