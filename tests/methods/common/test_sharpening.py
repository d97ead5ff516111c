from __future__ import annotations

import pytest
import torch

from selfbench.methods.common.sharpening import sharpen


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.4])
def test_sharpening_equals_its_definition(temperature: float) -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for row, sharp in zip(p.tolist(), sharpen(p, temperature).tolist(), strict=True):
        raised = [a ** (1 / temperature) for a in row]
        assert sharp == pytest.approx([a / sum(raised) for a in raised], abs=1e-12)


def test_a_small_temperature_over_many_classes_does_not_underflow() -> None:
    p = torch.full((1, 10_000), 1e-4)
    torch.testing.assert_close(sharpen(p, 0.05), p)
