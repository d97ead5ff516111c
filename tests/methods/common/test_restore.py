from __future__ import annotations

import pytest
import torch

from selfbench.methods.common.restore import restore_randomly, restore_where


def _weights() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 50), (7,), (3, 4, 5)]
    return tuple([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))  # type: ignore[return-value]


def test_masked_weights_become_those_of_the_source_and_no_others() -> None:
    weights, source = _weights()
    before = [weight.clone() for weight in weights]
    mask = (torch.rand(2067, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    restore_where(weights, source, mask)
    start = 0
    for weight, old, origin in zip(weights, before, source, strict=True):
        for got, was, from_source in zip(weight.flatten(), old.flatten(), origin.flatten(), strict=True):
            assert got == (from_source if mask[start] else was)
            start += 1


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_share_of_restored_weights_is_the_probability(probability: float) -> None:
    weights, source = _weights()
    restore_randomly(weights, source, probability, torch.Generator().manual_seed(2))
    restored = torch.cat([(weight == origin).flatten() for weight, origin in zip(weights, source, strict=True)])
    assert restored.float().mean().item() == pytest.approx(probability, abs=0.04)
