"""Tokens drawn from a large vocabulary: by the probabilities, from the nucleus, each row by its own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from selfbench.suite.protocols import language_model, sampling
from selfbench.suite.protocols.sampling import Sampling, choose

PAD = 3


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every vocabulary counts as large; blocks do not divide it, and most nuclei are larger than the head."""
    monkeypatch.setattr(language_model, "LARGE", 2)
    monkeypatch.setattr(sampling, "_BLOCK", 7)
    monkeypatch.setattr(sampling, "_HEAD", 5)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_logits(n: int = 31) -> Tensor:
    logits = 2.0 * torch.randn(n, generator=draw(7))
    logits[12] = -torch.inf
    return logits


def kept(logits: Tensor, given: Sampling) -> np.ndarray:
    """The probabilities that `given` leaves, by a loop."""
    p = (logits.double() / given.temperature).masked_fill(torch.arange(len(logits)) == PAD, -torch.inf).softmax(0)
    result, total = np.zeros(len(p)), 0.0
    for token in p.argsort(descending=True).tolist():
        if total >= given.top_p:
            break
        result[token] = float(p[token])
        total += float(p[token])
    return result / result.sum()


@pytest.mark.parametrize(
    "given", [Sampling(1.0), Sampling(0.6), Sampling(1.0, 0.9), Sampling(1.5, 0.5), Sampling(2.0, 0.97)]
)
def test_tokens_come_as_often_as_they_should(given: Sampling) -> None:
    logits, n = some_logits(), 40_000
    found = np.bincount(choose(logits.expand(n, -1).clone(), given, PAD, draw(1)).numpy(), minlength=len(logits))
    expected = kept(logits, given)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    common = expected * n >= 5
    assert stats.chisquare(found[common], expected[common] / expected[common].sum() * found[common].sum()).pvalue > 1e-3


@pytest.mark.parametrize("given", [Sampling(1.0), Sampling(0.8, 0.9)])
def test_a_row_is_drawn_as_among_all_rows(given: Sampling) -> None:
    logits = torch.randn(50, 31, generator=draw(2))
    rows = torch.tensor([3, 17, 18, 49])
    together = choose(logits.clone(), given, PAD, draw(3))
    assert torch.equal(choose(logits[rows], given, PAD, draw(3), rows, 50), together[rows])
    assert len(set(together.tolist())) > 5


def test_a_nucleus_within_the_head_is_that_of_a_whole_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 3.0 * torch.randn(2000, 31, generator=draw(4))
    found = choose(logits.clone(), Sampling(1.0, 0.8), PAD, draw(5))
    monkeypatch.setattr(sampling, "_HEAD", 31)
    assert torch.equal(found, choose(logits.clone(), Sampling(1.0, 0.8), PAD, draw(5)))


def test_greedy_takes_the_likeliest() -> None:
    logits = some_logits()
    logits[PAD] = 99.0
    assert int(choose(logits[None].clone(), Sampling(0.0), PAD, draw())) == int(kept(logits, Sampling(1.0)).argmax())


@pytest.mark.parametrize("u", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_what_has_no_weight_is_never_drawn(u: float) -> None:
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 3e-8, 0.0, 0.0], [0.1, 0.0, 0.2, 0.0]])
    found = sampling._by_inversion(weights, torch.full((3,), u, dtype=torch.float64)).tolist()
    assert found == [2, 1, 0 if u == 0.0 else 2]


@pytest.mark.gpu
@pytest.mark.parametrize("given", [Sampling(1.0), Sampling(1.0, 0.9)])
def test_a_gpu_draws_by_the_same_probabilities_whatever_the_order_of_its_sums(given: Sampling) -> None:
    logits, n = some_logits(), 40_000
    torch.use_deterministic_algorithms(True)
    try:
        two = [
            choose(logits.cuda().expand(n, -1).clone(), given, PAD, torch.Generator("cuda").manual_seed(1)).cpu()
            for _ in range(2)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    expected = kept(logits, given)
    assert torch.equal(*two)
    assert np.abs(np.bincount(two[0].numpy(), minlength=len(expected)) / n - expected).max() < 0.015
