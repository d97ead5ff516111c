from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.consistency.vat import Vat, divergence, unit
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.adaptation import Batch, LabeledBatch


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return sum((a * (a / b).log() for a, b in zip(p, q, strict=True)), torch.zeros((), dtype=p.dtype))


def _slow(method: Vat, labeled: Any, unlabeled: Any, noise: Tensor, share: float) -> Tensor:
    """One example at a time; the gradient of the power iteration by central differences along each input."""
    model = method.model
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        supervised = supervised - model(x[None])[0].softmax(0)[y].log()
    own = torch.zeros((), dtype=torch.float64)
    for u, d in zip(unlabeled.weak, noise, strict=True):
        p = model(u[None])[0].softmax(0)
        for _ in range(method.steps):
            r, h, slopes = method.xi * d / d.norm(), 1e-4 * method.xi, []
            with torch.no_grad():
                for basis in torch.eye(len(u), dtype=torch.float64):
                    there, back = (
                        _kl(p, model((u + r + sign * h * basis)[None])[0].softmax(0)) for sign in (1.0, -1.0)
                    )
                    slopes.append((there - back) / (2 * h))
            d = torch.stack(slopes)
        q = model((u + method.epsilon * d / d.norm())[None])[0].softmax(0)
        own = own + share * _kl(p.detach(), q) - method.entropy * sum(a * a.log() for a in p)
    return supervised / len(labeled) + method.weight * own / len(unlabeled)


@pytest.mark.parametrize(
    ("changes", "progress", "share"),
    [({}, 0.5, 1.0), ({"steps": 3}, 0.5, 1.0), ({"entropy": 0.3, "ramp": 0.4, "weight": 2.0}, 0.1, 0.25)],
)
def test_loss_and_gradient_equal_a_loop_with_central_differences(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], changes: Any, progress: float, share: float
) -> None:
    # A large step of finite differences, so that those of the loop have digits to spare.
    method = Vat(epsilon=1.5, xi=0.1, **changes)
    view = make_view(method, progress=progress)
    labeled, unlabeled = make_batches(view)
    state = view.generator.get_state()
    noise = torch.randn(unlabeled.weak.shape, generator=view.generator, dtype=torch.float64)
    view.generator.set_state(state)
    parameters = list(method.model.parameters())
    slow = _slow(method, labeled, unlabeled, noise, share)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-7)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_given_its_direction_the_loss_equals_the_loop_to_the_last_digits(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = Vat(epsilon=1.5, entropy=0.2, weight=1.5)
    view = make_view(method)
    labeled, unlabeled = make_batches(view)
    state = view.generator.get_state()
    with torch.no_grad():
        target = method.model(unlabeled.weak)
    r = method.perturbation(unlabeled.weak, target)
    view.generator.set_state(state)
    slow = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        slow = slow - _log_p(method, x)[y] / len(labeled)
    for u, step in zip(unlabeled.weak, r, strict=True):
        log_p, log_q = _log_p(method, u), _log_p(method, u + step)
        p = log_p.exp().detach()
        own = (p * (log_p.detach() - log_q)).sum() - 0.2 * (log_p.exp() * log_p).sum()
        slow = slow + 1.5 * own / len(unlabeled)
    parameters = list(method.model.parameters())
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def _log_p(method: Vat, x: Tensor) -> Tensor:
    z = method.model(x[None])[0]
    return z - z.exp().sum().log()


class Linear(nn.Module):
    """Logits W u of flattened inputs: the most adverse direction is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_many_power_iterations_find_the_top_eigenvector_of_the_fisher_information(
    make_view: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    method = Vat(epsilon=2.5, xi=1e-4, steps=60)
    make_view(method)
    generator = torch.Generator().manual_seed(1)
    method.model = Linear(torch.randn(4, 6, generator=generator, dtype=torch.float64))
    u = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    target = method.model(u).detach()
    r = method.perturbation(u, target)
    assert r.shape == u.shape
    for row, logits in zip(r.flatten(1), target, strict=True):
        p = logits.softmax(0)
        w = method.model.weight.detach()
        fisher = w.T @ (p.diag() - p.outer(p)) @ w
        top = torch.linalg.eigh(fisher).eigenvectors[:, -1]
        assert row.norm().item() == pytest.approx(2.5, abs=1e-12)
        assert (row @ top).abs().item() == pytest.approx(2.5, abs=1e-3)


def test_one_iteration_is_worse_than_many_and_better_than_chance(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    values = []
    for steps in (0, 1, 20):
        method = Vat(epsilon=0.1, steps=steps)
        _, unlabeled = make_batches(make_view(method), unlabeled=64)
        target = method.model(unlabeled.weak).detach()
        r = method.perturbation(unlabeled.weak, target)
        values.append(divergence(target, method.model(unlabeled.weak + r)).item())
    assert 0 < 1.5 * values[0] < values[1] < values[2]


def test_a_direction_of_tiny_numbers_has_length_one_and_zero_stays_zero() -> None:
    d = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [6.0, 8.0]])
    torch.testing.assert_close(unit(d), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]]))


def test_dropout_is_off_in_the_passes_over_unlabelled_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], dropout_task: Any
) -> None:
    """With dropout the divergence at a perturbation of almost no length would be that of two masks."""
    method = Vat()
    labeled, unlabeled = make_batches(make_view(method, dropout_task))
    method.epsilon = 1e-6
    torch.manual_seed(0)
    loss = method.loss(labeled, unlabeled)
    torch.manual_seed(0)
    supervised = F.cross_entropy(method.model(labeled.weak), labeled.y)
    assert loss.item() == pytest.approx(supervised.item(), abs=1e-9)


def test_half_precision_of_a_run_leaves_the_passes_over_unlabelled_examples_alone(
    make_view: Callable[..., Any],
) -> None:
    generator = torch.Generator().manual_seed(2)
    x, y, u = torch.randn(3, 6, generator=generator), torch.arange(3), torch.randn(5, 6, generator=generator)
    values = []
    for half in (True, False):
        method = Vat()
        make_view(method)
        method.model = Linear(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))
        labeled, unlabeled = LabeledBatch(x, y, _same, _same, _none), Batch(u, _same, _same, _none)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            values.append(method.loss(labeled, unlabeled) - F.cross_entropy(method.model(x), y))
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-6)
    assert values[0].item() > 0.1


def _same(inputs: Tensor, generator: Any) -> Tensor:
    return inputs


def _none(name: str) -> None:
    return None


def test_token_ids_are_refused_unless_the_weight_is_zero(make_view: Callable[..., Any], dropout_task: Any) -> None:
    class Tokens(type(dropout_task)):
        def inputs(self, public: Any, indices: Any) -> Tensor:
            return super().inputs(public, indices).long()

    with pytest.raises(UsageError, match=r"vat adds a perturbation to inputs, .* Tokens are int64"):
        make_view(Vat(), Tokens())
    make_view(Vat(weight=0.0), Tokens())
