from __future__ import annotations

import torch
from torch import nn

from selfbench.methods.common.noise import without_noise


def test_dropout_is_off_and_batch_norm_uses_the_batch_without_learning_from_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[0].eval()
    x = torch.randn(6, 3)
    with without_noise(model):
        y = model(x)
        assert torch.equal(y, model(x))
    h = model[0](x)
    torch.testing.assert_close(y, (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt())
    assert model[1].num_batches_tracked.item() == 0
    assert [layer.training for layer in model] == [False, True, True]
