from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.robust_ssl import RobustSSL, ramp
from selfbench.suite.errors import UsageError

CLOSED = {"gamma": 0.7, "gamma_unlabeled": 0.9}
ASCENT = {"gamma": 8.0, "gamma_unlabeled": 6.0, "inner": 3}


def _shake(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def _phi(model: Any, method: RobustSSL, x: Tensor, y: int | None, gamma: float) -> Tensor:
    """The robust loss of one example by hand."""
    if method.inner == 0:
        z, weight = model(x[None])[0], model[-1].weight
        y = int(z.argmax()) if y is None else y
        distance = min(
            ((z[y] - z[k]) / (weight[y] - weight[k]).norm() for k in range(len(z)) if k != y), key=lambda d: d.item()
        )
        value = 1 - gamma * distance
        return value if 0 < value.item() < 1 else torch.tensor(float(value.item() >= 1), dtype=x.dtype)
    y = int(model(x[None])[0].argmax()) if y is None else y
    worst = x
    for _ in range(method.inner):
        worst = worst.detach().requires_grad_()
        z = model(worst[None])[0]
        (gradient,) = torch.autograd.grad(z.exp().sum().log() - z[y], worst)
        # A step 1 / (2 gamma) along the gradient of l(z) - gamma ||z - x||^2.
        worst = worst + (gradient - 2 * gamma * (worst - x)) / (2 * gamma)
    worst = worst.detach()
    z = model(worst[None])[0]
    return z.exp().sum().log() - z[y] - gamma * ((worst - x) ** 2).sum()


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("labeled_loss", ["cross-entropy", "robust"])
@pytest.mark.parametrize("form", [CLOSED, ASCENT], ids=["closed", "ascent"])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], weight: float, labeled_loss: str, form: Any
) -> None:
    method = RobustSSL(weight=weight, labeled_loss=labeled_loss, **form)
    labeled, unlabeled = make_batches(make_view(method))
    _shake(method.model)
    parameters = list(method.model.parameters())
    slow = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y.tolist(), strict=True):
        if labeled_loss == "robust":
            one = _phi(method.model, method, x, y, method.gamma)
        else:
            z = method.model(x[None])[0]
            one = z.exp().sum().log() - z[y]
        slow = slow + one / len(labeled)
    own = [_phi(method.model, method, u, None, method.gamma_unlabeled) for u in unlabeled.weak]
    if method.inner == 0:
        assert any(0 < phi.item() < 1 for phi in own)
        assert any(phi.item() == 0 for phi in own)
    slow = slow + weight * sum(own) / len(unlabeled)
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_closed_form_is_the_supremum() -> None:
    """Against a search over a fine grid of the plane, with three classes."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    bias = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    side = torch.linspace(-4, 4, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    classes = (grid @ weight.T + bias).argmax(1)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    seen = []
    for point, y in itertools.product(x, range(3)):
        logits = (point @ weight.T + bias)[None]
        value = ramp(logits, torch.tensor([y]), weight, 1.5).item()
        supremum = ((classes != y).double() - 1.5 * (grid - point).norm(dim=1)).max().item()
        inside = int(logits.argmax()) == y
        # z = x is always allowed, and on the grid a step of 0.01 is missed.
        supremum = max(supremum, 0.0 if inside else 1.0)
        assert value == pytest.approx(supremum, abs=0.03)
        seen.append(value)
    assert min(seen) == 0.0
    assert max(seen) == 1.0
    assert any(0.05 < value < 0.95 for value in seen)


def test_the_ascent_finds_the_supremum_for_a_linear_model(make_view: Callable[..., Any]) -> None:
    """There, z leaves x along the difference of the two weights, and the supremum is that over one number."""
    method = RobustSSL(inner=15)
    make_view(method)
    method.model = nn.Linear(5, 2).double()
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    z, _ = method._perturbed(x, y, 2.0)
    weight = method.model.weight.detach()
    steps = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    for point, worst, label in zip(x, z, y.tolist(), strict=True):
        along = weight[1 - label] - weight[label]
        line = point + steps[:, None] * along
        target = torch.full((len(line),), label)
        values = nn.functional.cross_entropy(method.model(line), target, reduction="none")
        best = (values - 2.0 * (line - point).square().sum(1)).max().item()
        own = nn.functional.cross_entropy(method.model(worst[None]), target[:1]) - 2.0 * (worst - point).square().sum()
        assert own.item() == pytest.approx(best, abs=1e-6)
        assert own.item() > nn.functional.cross_entropy(method.model(point[None]), target[:1]).item()


@pytest.mark.parametrize("form", [CLOSED, ASCENT], ids=["closed", "ascent"])
def test_the_unlabelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], form: Any
) -> None:
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        method = RobustSSL(weight=weight, **form)
        labeled, unlabeled = make_batches(make_view(method), unlabeled=8 * method.unlabeled_ratio())
        parts = torch.autograd.grad(method.loss(labeled, unlabeled), list(method.model.parameters()))
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[0.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * own, rtol=0, atol=1e-12)


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(RobustSSL(weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    for other in (RobustSSL(), RobustSSL(weight=0.0, labeled_loss="robust")):
        assert not np.array_equal(adapt(other).logits[-1], baseline.logits[-1])


def test_the_inner_maximum_leaves_running_statistics_alone(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    method = RobustSSL(**ASCENT)
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    method.loss(labeled, unlabeled)
    assert method.model[1].num_batches_tracked.item() == 1


@pytest.mark.parametrize(
    ("method", "per_labeled"),
    [
        (RobustSSL(ratio=2), 3 * (1 + 2)),
        (RobustSSL(ratio=2, labeled_loss="robust"), 3 * (1 + 2)),
        (RobustSSL(ratio=2, inner=2), 3 * (1 + 2) + 3 * 2 * 2),
        (RobustSSL(ratio=2, inner=2, labeled_loss="robust"), (3 + 3 * 2) * (1 + 2)),
        (RobustSSL(weight=0.0, inner=2, labeled_loss="robust"), 3 + 3 * 2),
    ],
    ids=str,
)
def test_counted_passes(adapt: Callable[..., Any], method: RobustSSL, per_labeled: int) -> None:
    result = adapt(method, limit=4 * 8 * per_labeled)
    assert result.counts.passes == result.at[-1] == 4 * 8 * per_labeled


@pytest.mark.parametrize("form", [CLOSED, ASCENT | {"labeled_loss": "robust"}], ids=["closed", "ascent"])
def test_a_killed_run_resumes_bit_equal(adapt: Callable[..., Any], form: Any) -> None:
    whole = adapt(RobustSSL(ratio=2, **form), limit=3000)
    killed = adapt(RobustSSL(ratio=2, **form), checkpoints=0, stop_after=5, limit=3000)
    resumed = adapt(RobustSSL(ratio=2, **form), limit=3000)
    assert 0 < killed.counts.passes < whole.counts.passes
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


def test_classes_of_equal_weights_have_no_boundary_and_a_finite_loss() -> None:
    """A classifier that begins at zero, as those of fine-tuned texts do: only the logits tell classes apart."""
    logits = torch.tensor([[0.3, -0.1, 0.0], [0.0, 0.2, 2.0]], requires_grad=True)
    loss = ramp(logits, torch.tensor([0, 1]), torch.zeros(3, 4), 0.5)
    assert loss.item() == pytest.approx(((1 - 0.5 * 0.3) + 1.0) / 2, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


def test_inputs_that_cannot_be_perturbed_are_refused_at_once(text_task: Any, make_view: Callable[..., Any]) -> None:
    for refused in (RobustSSL(inner=2), RobustSSL(inner=1, weight=0.0, labeled_loss="robust")):
        with pytest.raises(UsageError, match="robust-ssl with inner > 0 perturbs inputs, which must be real numbers"):
            make_view(refused, text_task)
    make_view(RobustSSL(inner=2, weight=0.0), text_task)
