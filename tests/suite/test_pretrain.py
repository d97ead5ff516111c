"""Source models: reproducible training and the gate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from selfbench.suite.errors import GateError
from selfbench.suite.pretrain import check_gate, error_rate, reproducible, train_classifier


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture(scope="module")
def rings() -> tuple[Tensor, Tensor]:
    """Two rings of 256 points."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(256) % 2
    angle = 2 * torch.pi * torch.rand(256, generator=generator)
    radius = 1 + labels + 0.1 * torch.randn(256, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


def jitter(batch: Tensor, generator: torch.Generator) -> Tensor:
    return batch + 0.05 * torch.randn(batch.shape, generator=generator)


def test_equal_seeds_give_equal_weights_whatever_the_threads(rings: tuple[Tensor, Tensor]) -> None:
    threads = torch.get_num_threads()
    first = train_classifier(network, *rings, seed=3, epochs=4, augment=jitter).state_dict()
    torch.manual_seed(99)
    torch.set_num_threads(2)
    try:
        second = train_classifier(network, *rings, seed=3, epochs=4, augment=jitter).state_dict()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    other = train_classifier(network, *rings, seed=4, epochs=4, augment=jitter).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_training_learns_and_leaves_eval_mode(rings: tuple[Tensor, Tensor]) -> None:
    untrained = network().eval()
    trained = train_classifier(network, *rings, seed=0, epochs=40)
    assert not trained.training
    assert error_rate(trained, *rings) < 0.02 < error_rate(untrained, *rings)


def test_the_global_random_state_is_untouched(rings: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    train_classifier(network, *rings, seed=0, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(RuntimeError), reproducible(1):
        raise RuntimeError
    assert torch.equal(before, torch.get_rng_state())


def test_error_rate_does_not_depend_on_batches(rings: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    inputs, labels = rings
    expected = float((model(inputs).argmax(dim=1) != labels).double().mean())
    assert error_rate(model, inputs, labels, batch_size=7) == expected


def test_the_gate_opens_for_the_declared_range_alone() -> None:
    task = SimpleNamespace(clean_error=(0.01, 0.03))
    for measured in (0.01, 0.02, 0.03):
        check_gate(task, {"clean_error": measured})
    for measured in (0.009, 0.031, float("nan")):
        with pytest.raises(GateError, match=r"declared is 1\.00% to 3\.00%"):
            check_gate(task, {"clean_error": measured})
    with pytest.raises(GateError, match="no fact 'clean_error'"):
        check_gate(task, {})
    check_gate(SimpleNamespace(), {})
