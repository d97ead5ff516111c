from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.alignment.dann import Dann, reverse_gradient


def _cross_entropy(z: Tensor, y: int) -> Tensor:
    return z.exp().sum().log() - z[y]


def _normalise(rows: list[Tensor], layer: Any) -> list[Tensor]:
    """Batch norm in training mode and ReLU, unit by unit."""
    n = len(rows)
    mean = sum(rows) / n
    variance = sum((row - mean) ** 2 for row in rows) / n
    return [((row - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias).clamp_min(0) for row in rows]


def _slow(method: Any, labeled: Any, unlabeled: Any) -> tuple[Tensor, Tensor]:
    """The two losses, one example at a time, without reversal; each domain's number is its rank."""
    body, head = nn.Sequential(*list(method.model)[:-1]), method.model[-1]
    supervised = torch.zeros((), dtype=torch.float64)
    for x, y in zip(labeled.weak, labeled.y, strict=True):
        supervised = supervised + _cross_entropy(head(body(x[None]))[0], int(y))
    first, norm, _, second, norm2, _, last = method.discriminator
    rows = [body(x[None])[0] for x in [*labeled.weak, *unlabeled.weak]]
    rows = _normalise([first.weight @ row + first.bias for row in rows], norm)
    rows = _normalise([second.weight @ row + second.bias for row in rows], norm2)
    told = [last.weight @ row + last.bias for row in rows]
    domains = [*labeled.domains.tolist(), *unlabeled.domains.tolist()]
    ranks = sorted({*method.view.labeled_domains.tolist(), *method.view.unlabeled_domains.tolist()})
    adversarial = sum(_cross_entropy(z, ranks.index(d)) for z, d in zip(told, domains, strict=True))
    return supervised / len(labeled), adversarial / len(domains)


@pytest.mark.parametrize(
    ("weight", "reversal", "progress", "factor"),
    [(1.0, "constant", 0.2, 1.0), (0.3, "constant", 0.9, 1.0), (2.0, "rising", 0.1, math.tanh(0.5))],
)
def test_the_discriminator_descends_what_the_features_ascend(
    make_view: Callable[..., Any],
    make_batches: Callable[..., Any],
    weight: float,
    reversal: str,
    progress: float,
    factor: float,
) -> None:
    method = Dann(weight=weight, reversal=reversal)
    view = make_view(method, progress=progress)
    # Numbers of domains need not be consecutive.
    view.labeled_domains, view.unlabeled_domains = 10 * view.labeled_domains + 5, 10 * view.unlabeled_domains + 5
    method.setup(method.model, view)
    labeled, unlabeled = make_batches(view)
    supervised, adversarial = _slow(method, labeled, unlabeled)
    model, other = list(method.model.parameters()), list(method.discriminator.parameters())
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx((supervised + weight * adversarial).item(), abs=1e-10)
    gradients = torch.autograd.grad(loss, model + other)
    own = torch.autograd.grad(supervised, model)
    features = torch.autograd.grad(adversarial, model, allow_unused=True, retain_graph=True)
    assert features[0].abs().max() > 1e-6
    for mine, a, b in zip(gradients, own, features, strict=False):
        expected = a if b is None else a - weight * factor * b
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
    expected = torch.autograd.grad(adversarial, other)
    for mine, theirs in zip(gradients[len(model) :], expected, strict=True):
        torch.testing.assert_close(mine, weight * theirs, rtol=0, atol=1e-10)


def test_the_reversal_keeps_values_and_turns_gradients() -> None:
    h = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[2.0, 1.0], [-1.0, 4.0]], dtype=torch.float64)
    out = reverse_gradient(h, 0.7)
    assert torch.equal(out, h)
    (a * out).sum().backward()
    torch.testing.assert_close(h.grad, -0.7 * a, rtol=0, atol=0)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.25, 2 / (1 + math.exp(-2.5)) - 1), (0.9, 0.99975)])
def test_the_rising_reversal(make_view: Callable[..., Any], progress: float, factor: float) -> None:
    method = Dann(reversal="rising")
    make_view(method, progress=progress)
    assert method._reversal() == pytest.approx(factor, abs=1e-5)


def test_three_rates_cover_every_parameter_once(make_view: Callable[..., Any]) -> None:
    method = Dann()
    make_view(method)
    groups = method.parameter_groups()
    assert [scale for _, scale in groups] == [0.1, 1.0, 1.0]
    ids = [id(parameter) for parameters, _ in groups for parameter in parameters]
    both = [*method.model.parameters(), *method.discriminator.parameters()]
    assert sorted(ids) == sorted(id(parameter) for parameter in both)
    assert {id(p) for p in groups[1][0]} == {id(p) for p in method.model[-1].parameters()}
    shapes = [tuple(p.shape) for p in method.discriminator.parameters() if p.dim() == 2]
    assert shapes == [(1024, 12), (1024, 1024), (4, 1024)]


def test_the_discriminator_comes_from_the_methods_own_random_stream(make_view: Callable[..., Any]) -> None:
    weights = []
    for _ in range(2):
        method = Dann()
        torch.manual_seed(len(weights))
        make_view(method)
        weights.append(method.discriminator[0].weight.detach().clone())
    assert torch.equal(*weights)
    before = torch.get_rng_state()
    make_view(Dann())
    assert torch.equal(before, torch.get_rng_state())


def test_the_discriminator_is_trained(adapt: Callable[..., Any]) -> None:
    one, ten = (adapt(Dann(), limit=48 * steps).method.discriminator for steps in (1, 10))
    for mine, theirs in zip(one.parameters(), ten.parameters(), strict=True):
        assert not torch.equal(mine, theirs)
