from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.common import view_norm
from selfbench.methods.common.norm import use_batch_statistics
from selfbench.methods.common.view_norm import logits_of_views, mean_over_views
from selfbench.methods.common.views import random_views


class ActivatedNorm(nn.BatchNorm2d):
    """A subclass that does more than normalise, as those of model libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(super().forward(x))


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _bare(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, affine=False)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ActivatedNorm, _bare, _group])
def test_batched_views_equal_the_loop_over_views(
    source_model: Callable[..., nn.Module], norm: Callable[[int], nn.Module]
) -> None:
    model = source_model(norm).double()
    use_batch_statistics(model)
    views = torch.rand(5, 7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    views[1] += 1.0  # statistics of the views differ
    with torch.no_grad():
        one_by_one = torch.stack([model(view) for view in views])
        together = logits_of_views(model, views)
        pooled = model(views.flatten(0, 1)).view(5, 7, -1)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-10)
    assert ((pooled - one_by_one).abs().max() > 1e-3) == (norm is not _group)
    # Nothing is left behind.
    assert torch.equal(torch.stack([model(view) for view in views]), one_by_one)


@pytest.mark.parametrize("chunk", [1, 2 * 6 * 3 * 64, 10**9])
def test_mean_does_not_depend_on_the_chunk(
    monkeypatch: pytest.MonkeyPatch, source_model: Callable[..., nn.Module], chunk: int
) -> None:
    model = source_model().double()
    use_batch_statistics(model)
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    views = random_views(images, torch.Generator().manual_seed(2), n=5)
    with torch.no_grad():
        expected = sum(model(view) for view in views) / 5
    monkeypatch.setattr(view_norm, "CHUNK_CPU", chunk)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    mean = mean_over_views(model, images, 5, torch.Generator().manual_seed(2))
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-10)
    assert passes == {1: [6] * 5, 2 * 6 * 3 * 64: [12, 12, 6], 10**9: [30]}[chunk]
    assert not mean.requires_grad
