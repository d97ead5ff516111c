from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.fixmatch import FixMatch
from selfbench.suite.protocols.adaptation import Batch, LabeledBatch


def _slow(
    model: Any, labeled: Any, unlabeled: Any, threshold: float, weight: float, augment: str = "weak"
) -> tuple[Tensor, int]:
    """One example at a time; the loss and how many unlabelled examples were kept."""
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(getattr(labeled, augment), labeled.y, strict=True):
        z = model(x[None])[0]
        supervised = supervised + z.exp().sum().log() - z[y]
    own, kept = torch.zeros((), dtype=torch.float64), 0
    for weak, strong in zip(unlabeled.weak, unlabeled.strong, strict=True):
        with torch.no_grad():
            q = model(weak[None])[0].softmax(0).tolist()
        if max(q) >= threshold:
            z = model(strong[None])[0]
            own = own + z.exp().sum().log() - z[q.index(max(q))]
            kept += 1
    return supervised / len(labeled) + weight * own / len(unlabeled), kept


@pytest.mark.parametrize(("weight", "augment"), [(1.0, "weak"), (3.0, "weak"), (1.0, "strong")])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], weight: float, augment: str
) -> None:
    method = FixMatch(threshold=0.4, weight=weight, augment=augment)
    labeled, unlabeled = make_batches(make_view(method))
    parameters = list(method.model.parameters())
    slow, kept = _slow(method.model, labeled, unlabeled, 0.4, weight, augment)
    assert 0 < kept < len(unlabeled)
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


class Scale(nn.Module):
    """Logits are the inputs, times one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, (2.0 + 1.0) / 2), (0.8, 2.0 / 2), (0.95, 0.0)])
def test_known_logits_give_the_known_loss(make_view: Callable[..., Any], threshold: float, expected: float) -> None:
    """The strong view swaps two classes: the target is the other class, whose loss is log(1 + e^d) for a gap d."""
    method = FixMatch(threshold=threshold)
    make_view(method)
    method.model = Scale()
    u = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # confidences 0.881 and 0.731
    x = torch.tensor([[3.0, 0.0]], dtype=torch.float64)

    def same(inputs: Tensor, generator: Any) -> Tensor:
        return inputs

    def swapped(inputs: Tensor, generator: Any) -> Tensor:
        return inputs.flip(1)

    labeled = LabeledBatch(x, torch.tensor([0]), same, swapped, lambda name: None)
    loss = method.loss(labeled, Batch(u, same, swapped, lambda name: None))
    # log(1 + e^d) = d + log(1 + e^-d), kept examples only
    kept = [gap for gap, confidence in ((2.0, 0.881), (1.0, 0.731)) if confidence >= threshold]
    total = sum(math.log1p(math.exp(-gap)) for gap in kept) / 2 + expected
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3.0)) + total, abs=1e-12)
    loss.backward()
    # d/ds log(1 + e^(s d)) = d sigmoid(d); the weak view contributes nothing
    gradient = sum(gap / (1 + math.exp(-gap)) for gap in kept) / 2 - 3.0 / (1 + math.exp(3.0))
    assert method.model.scale.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_all_views_pass_as_one_batch(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    method = FixMatch()
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    views = torch.cat([labeled.weak, unlabeled.weak, unlabeled.strong])
    expected = 0.1 * method.model[0](views).detach().mean(0)
    method.loss(labeled, unlabeled)
    torch.testing.assert_close(method.model[1].running_mean, expected, rtol=0, atol=1e-12)
    assert method.model[1].num_batches_tracked.item() == 1


def test_weight_zero_is_the_baseline_on_the_same_view(adapt: Callable[..., Any]) -> None:
    mine, theirs = adapt(FixMatch(weight=0.0, augment="strong")), adapt(Supervised(augment="strong"))
    assert all((a == b).all() for a, b in zip(mine.logits, theirs.logits, strict=True))
