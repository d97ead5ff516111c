from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfbench.methods.common.waveblock import WaveBlock, add_wave_blocks
from selfbench.suite.errors import UsageError


def _net() -> nn.Sequential:
    """Three stages with convolutions, and layers without between them; no ReLU of these weights is dead for all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), nn.MaxPool2d(2),
            nn.Conv2d(2, 3, 1), nn.Flatten(), nn.LazyLinear(4),
        )  # fmt: skip


def _blocks(model: nn.Module) -> dict[str, list[WaveBlock]]:
    found = {
        name: [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WaveBlock)]
        for name, module in model.named_modules()
    }
    return {name: hooks for name, hooks in found.items() if hooks}


def test_all_but_a_band_of_rows_is_amplified() -> None:
    block = WaveBlock(1.5, 0.3, torch.Generator().manual_seed(0))
    x = torch.rand(4, 3, 10, 7, dtype=torch.float64)
    starts = set()
    for _ in range(200):
        (out,) = block(nn.Identity().train(), (x,))
        factor = out / x
        assert torch.equal(factor.round(decimals=9), factor[:1, :1, :, :1].round(decimals=9).expand_as(factor))
        rows = (factor[0, 0, :, 0] < 1.25).nonzero().flatten().tolist()
        assert rows == list(range(rows[0], rows[0] + 3))
        torch.testing.assert_close(factor.amax(), torch.tensor(1.5, dtype=torch.float64))
        starts.add(rows[0])
    assert starts == set(range(8))


def test_nothing_happens_in_evaluation_and_copies_share_the_block() -> None:
    model = _net()
    add_wave_blocks(model, 1.5, 0.3, torch.Generator())
    x = torch.rand(2, 1, 8, 8)
    model.eval()(x)
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module._forward_pre_hooks.clear()
    assert torch.equal(model(x), plain(x))
    model.train()
    assert not torch.equal(model(x), plain(x))
    assert _blocks(copy.deepcopy(model))["2"][0] is _blocks(model)["2"][0]


def test_blocks_stand_before_the_last_two_stages() -> None:
    for model, names in (
        (_net(), {"2", "4"}),
        (nn.Sequential(nn.Flatten(0, 0), _net()), {"1.2", "1.4"}),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), {"1"}),
    ):
        add_wave_blocks(model, 1.5, 0.3, torch.Generator())
        assert _blocks(model).keys() == names


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())])
def test_a_model_without_two_stages_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="use wave=1"):
        add_wave_blocks(model, 1.5, 0.3, torch.Generator())
