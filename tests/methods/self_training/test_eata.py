from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.common.reliable import reliable_entropy
from selfbench.methods.self_training.eata import Eata, Eta
from selfbench.suite.protocols.stream import Source


class _Double:
    """Source images in double precision."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, indices: Tensor) -> Tensor:
        return self.images(indices).double()


def _sharp(model: nn.Module) -> nn.Module:
    """The model with a steeper classifier, so that entropies differ from image to image; in double precision."""
    model.double().train()[3][2].eval()
    noise = 1.5 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.3
    with torch.no_grad():
        model[6].weight.mul_(60.0)
        model[6].bias.sub_(model(noise).mean(0))
    return model.eval()


class SlowEta:
    """EATA image by image and number by number, with SGD (Nesterov) written out."""

    def __init__(self, model: nn.Module, lr: float, margin: float, epsilon: float) -> None:
        self.model = model.train()
        self.model[3][2].eval()
        self.theta = [model[1].weight, model[1].bias, model[3][1].weight, model[3][1].bias]
        self.momentum = [torch.zeros_like(part) for part in self.theta]
        self.lr, self.e0, self.epsilon = lr, margin * math.log(4), epsilon
        self.average: list[float] | None = None
        self.kept: list[int] = []

    def predict(self, batch: Tensor, penalty: Callable[[list[Tensor]], Tensor] | None = None) -> Tensor:
        logits = self.model(batch)
        terms, chosen = [], []
        for row in logits:
            p = row.exp() / row.exp().sum()
            h = -(p * p.log()).sum()
            if h.item() >= self.e0:
                continue
            q = p.tolist()
            if self.average is not None:
                dot = sum(a * b for a, b in zip(self.average, q, strict=True))
                norms = math.sqrt(sum(a * a for a in self.average) * sum(b * b for b in q))
                if abs(dot / norms) >= self.epsilon:
                    continue
            terms.append(math.exp(self.e0 - h.item()) * h)
            chosen.append(q)
        self.kept.append(len(terms))
        if terms:
            mean = [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]
            old = self.average
            self.average = mean if old is None else [0.9 * a + 0.1 * b for a, b in zip(old, mean, strict=True)]
            loss = sum(terms) / len(terms)
            if penalty is not None:
                loss = loss + penalty(self.theta)
            gradients = torch.autograd.grad(loss, self.theta)
            with torch.no_grad():
                for part, m, g in zip(self.theta, self.momentum, gradients, strict=True):
                    m.mul_(0.9).add_(g)
                    part -= self.lr * (g + 0.9 * m)
        return logits.detach()


BOUNDS = {"lr": 0.05, "margin": 0.5, "d_margin": 0.85}


def test_eta_equals_a_loop_over_images(source_model: Callable[..., nn.Module], source: Source, images: Tensor) -> None:
    slow = SlowEta(_sharp(source_model()), 0.05, 0.5, 0.85)
    method = Eta(optimizer="sgd", **BOUNDS)
    method.setup(_sharp(source_model()), source)
    for batch in images.double().split(10):
        torch.testing.assert_close(method.predict(batch), slow.predict(batch), rtol=0, atol=1e-10)
    # Both conditions bind, and some batch has samples.
    assert 0 < sum(slow.kept) < 40
    assert slow.average is not None


@pytest.mark.parametrize("fisher", [0.0, 30.0])
def test_eata_equals_a_loop_with_the_penalty_of_the_paper(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, fisher: float
) -> None:
    slow = SlowEta(_sharp(source_model()), 0.05, 0.5, 0.85)
    draws = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:20]
    omega = [torch.zeros_like(part) for part in slow.theta]
    for part in (draws[:8], draws[8:16], draws[16:]):
        assert source.images is not None
        logits = slow.model(source.images(part).double())
        gradients = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), slow.theta)
        omega = [o + g**2 / 3 for o, g in zip(omega, gradients, strict=True)]
    start = [part.detach().clone() for part in slow.theta]

    def penalty(theta: list[Tensor]) -> Tensor:
        return fisher * sum((o * (a - b) ** 2).sum() for o, a, b in zip(omega, theta, start, strict=True))

    method = Eata(optimizer="sgd", fisher=fisher, fisher_images=20, fisher_batch=8, **BOUNDS)
    source.images = _Double(source.images)
    method.setup(_sharp(source_model()), source)
    for batch in images.double().split(10):
        torch.testing.assert_close(method.predict(batch), slow.predict(batch, penalty), rtol=0, atol=1e-10)
    assert sum(slow.kept) > 0


def test_a_penalty_of_zero_is_eta(stream: Callable[..., Any]) -> None:
    shared = {"margin": 1.0, "d_margin": 1.01}
    eata, eta = stream(Eata(fisher=0.0, **shared)), stream(Eta(**shared))
    for mine, theirs in zip(eata.logits, eta.logits, strict=True):
        assert (mine == theirs).all()


def test_a_strong_penalty_holds_the_weights(stream: Callable[..., Any], source_model: Callable[..., nn.Module]) -> None:
    away = []
    for fisher in (0.0, 1e4):
        method = stream(Eata(lr=1e-3, optimizer="sgd", fisher=fisher, margin=1.0, d_margin=1.01)).method
        theta, start, omega = (
            torch.cat([part.detach().flatten() for part in parts])
            for parts in (method.theta, method.start, method.omega)
        )
        away.append((omega * (theta - start) ** 2).sum().item())
    assert 0 < away[1] < away[0]


def test_without_chosen_samples_nothing_moves(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = Eta(margin=0.1)
    method.setup(source_model(), source)
    assert torch.equal(method.predict(images), method.predict(images))
    assert method.average is None
    average = torch.full((4,), 0.25)
    loss, same = reliable_entropy(torch.zeros(3, 4), average, 0.1, 1.01)
    assert loss is None
    assert same is average
