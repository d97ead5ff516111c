from __future__ import annotations

import pytest
import torch

from selfbench.methods.common.mixup import mixing_shares, mixup


@pytest.mark.parametrize("alpha", [0.1, 0.75, 4.0])
def test_shares_have_the_moments_of_the_folded_beta_distribution(alpha: float) -> None:
    """E (2l - 1)^2 = 1 / (2 alpha + 1) for l ~ Beta(alpha, alpha), which folding at 1/2 leaves alone."""
    shares = mixing_shares(200_000, alpha, torch.Generator().manual_seed(0)).double()
    assert 0.5 <= shares.min().item() <= shares.max().item() <= 1.0
    assert ((2 * shares - 1) ** 2).mean().item() == pytest.approx(1 / (2 * alpha + 1), abs=4e-3)


def test_shares_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    first = mixing_shares(5, 0.75, torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    assert torch.equal(first, mixing_shares(5, 0.75, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, mixing_shares(5, 0.75, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 1, 2, 2)])
def test_mixup_of_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    shares = torch.tensor([1.0, 0.5, 0.75])
    mixed = mixup(x, torch.tensor([2, 0, 1]), shares)
    for index, (other, share) in enumerate(zip((2, 0, 1), shares.tolist(), strict=True)):
        torch.testing.assert_close(mixed[index], share * x[index] + (1 - share) * x[other])
