from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.reflected_view import reflected_view
from selfbench.methods.common.weighted_likelihood import (
    certainty_and_diversity,
    correct_prior,
    mutual_cross_entropy,
    soft_likelihood_ratio,
)
from selfbench.methods.self_training.cmf import Cmf
from selfbench.methods.self_training.roid import Roid
from selfbench.suite.protocols.stream import Source


class Slow:
    """The common step of ROID and CMF, sample by sample, with SGD (Nesterov) written out."""

    def __init__(self, model: nn.Module, lr: float, consistency: bool) -> None:
        self.model = model.train()
        self.model[3][2].eval()
        self.theta = [model[1].weight, model[1].bias, model[3][1].weight, model[3][1].bias]
        self.start = [part.detach().clone() for part in self.theta]
        self.momentum = [torch.zeros_like(part) for part in self.theta]
        self.lr, self.consistency = lr, consistency
        self.average = torch.full((4,), 0.25)
        self.generator = torch.Generator().manual_seed(0)
        self.kept = 0

    def step(self, batch: Tensor, size: int) -> Tensor:
        logits = self.model(batch)
        weights, kept = certainty_and_diversity(logits.detach(), self.average, 1 / 3)
        self.average = 0.9 * self.average + 0.1 * logits.detach().softmax(1).mean(0)
        members = [b for b in range(len(batch)) if kept[b]]
        self.kept += len(members)
        terms = [weights[b] * soft_likelihood_ratio(logits[b : b + 1])[0] for b in members]
        if self.consistency:
            view = self.model(reflected_view(batch[members], self.generator))
            for i, b in enumerate(members):
                terms.append(weights[b] * mutual_cross_entropy(view[i : i + 1], logits[b : b + 1])[0])
        gradients = torch.autograd.grad(sum(terms) / size, self.theta)
        with torch.no_grad():
            for part, m, g in zip(self.theta, self.momentum, gradients, strict=True):
                m.mul_(0.9).add_(g)
                part -= self.lr * (g + 0.9 * m)
        return logits.detach()


def _close(method: Any, slow: Slow) -> None:
    for mine, theirs in zip(method.theta, slow.theta, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("consistency", [False, True])
def test_roid_equals_a_loop_over_samples(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, consistency: bool
) -> None:
    method = Roid(lr=0.05, optimizer="sgd", consistency=consistency, pull=0.9)
    method.setup(source_model(), source)
    slow = Slow(source_model(), 0.05, consistency)
    for batch in images.split(9):
        mine = method.predict(batch)
        logits = slow.step(batch, 9)  # the last batch is shorter, and counts by its share
        torch.testing.assert_close(mine, correct_prior(logits), rtol=0, atol=2e-6)
        with torch.no_grad():
            for part, start in zip(slow.theta, slow.start, strict=True):
                part.copy_(0.9 * part + 0.1 * start)
        _close(method, slow)
    assert 0 < slow.kept < 40


@pytest.mark.parametrize("q", [0.005, 60.0])
def test_cmf_equals_a_loop_over_samples(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, q: float
) -> None:
    method = Cmf(lr=0.05, optimizer="sgd", alpha=0.95, gamma=0.9, q=q, prior_correction=False)
    method.setup(source_model(), source)
    slow = Slow(source_model(), 0.05, True)
    hidden, variance = [part.clone() for part in slow.start], 0.0
    noise = q * 22 / 38400
    gains = []
    for batch in images.split(9):
        mine = method.predict(batch)
        torch.testing.assert_close(mine, slow.step(batch, 9), rtol=0, atol=2e-6)
        hidden = [0.95 * h + 0.05 * start for h, start in zip(hidden, slow.start, strict=True)]
        variance = 0.95**2 * variance + noise
        beta = min(max((1 - noise) / (variance + 1 - noise), 0.89), 1.0)
        beta = 1.0 if beta >= 0.9999 else beta
        gains.append(1 - beta)
        variance *= beta
        with torch.no_grad():
            hidden = [beta * h + (1 - beta) * part for h, part in zip(hidden, slow.theta, strict=True)]
            for part, h in zip(slow.theta, hidden, strict=True):
                part.copy_(0.9 * part + 0.1 * h)
        _close(method, slow)
    assert max(gains) == 0.0 if q < 1 else max(gains) > 0.05


def test_with_a_pull_of_one_source_weights_have_no_say(stream: Callable[..., Any]) -> None:
    free, pulled = stream(Roid(pull=1.0)), stream(Roid(pull=0.9))

    def way(result: Any) -> float:
        pairs = zip(result.method.theta, result.method.start, strict=True)
        return float(sum((part.detach() - start).abs().sum() for part, start in pairs))

    assert way(pulled) < way(free)


@pytest.mark.parametrize("method", [Roid, Cmf])
def test_the_correction_is_the_last_word_only(stream: Callable[..., Any], method: Any) -> None:
    plain, corrected = stream(method(prior_correction=False)), stream(method())
    state = corrected.method.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.method.model.state_dict().items())
    for mine, theirs in zip(plain.logits, corrected.logits, strict=True):
        torch.testing.assert_close(correct_prior(torch.from_numpy(mine)), torch.from_numpy(theirs))
