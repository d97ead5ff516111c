from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.norm import (
    frozen_running_statistics,
    mix_batch_statistics,
    norm_parameters,
    use_batch_statistics,
)
from selfbench.suite.errors import UsageError


def test_norm_parameters_are_the_scales_and_shifts_of_norm_layers_alone() -> None:
    layers = [
        nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True), nn.RMSNorm(4),
    ]  # fmt: skip
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(*layers), nn.Linear(4, 2), nn.LayerNorm(2, elementwise_affine=False)
    )
    found = {id(parameter) for parameter in norm_parameters(model)}
    assert found == {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert len(found) == 9


def test_a_model_without_norm_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear has no norm layer"):
        norm_parameters(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="LayerNorm has no batch norm layer"):
        mix_batch_statistics(nn.LayerNorm(2), 0.5)


def test_a_layer_without_source_statistics_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match="source_weight=0"):
        mix_batch_statistics(nn.BatchNorm1d(2, track_running_stats=False), 0.5)


def test_batch_statistics_in_eval_mode_equal_training_mode(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    expected = copy.deepcopy(model).train()(images)
    use_batch_statistics(model.eval())
    assert torch.equal(model(images), expected)


def test_one_value_per_channel_is_its_own_mean_and_has_no_variance() -> None:
    layer = nn.BatchNorm1d(2).double().eval()
    mix_batch_statistics(layer, 0.25)
    x = torch.tensor([[4.0, -2.0]], dtype=torch.float64)
    expected = (x - 0.75 * x) / (0.25 + layer.eps) ** 0.5
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixed_statistics_are_the_moments_of_the_batch(images: Tensor, layout: torch.memory_format) -> None:
    layer = nn.BatchNorm2d(3).double().eval()
    x = images.double().contiguous(memory_format=layout)
    mix_batch_statistics(layer, 0.25)
    layer(x)
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(layer.running_mean, 0.75 * mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.running_var, 0.25 + 0.75 * var, rtol=0, atol=1e-12)


def test_a_layer_that_also_activates_keeps_its_activation(images: Tensor) -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    layer = NormAct(3).eval()
    mix_batch_statistics(layer, 0.5)
    assert layer(images).min() == 0.0


def test_frozen_running_statistics_change_neither_the_output_nor_the_buffers(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    other = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen_running_statistics(model):
        frozen = model(images)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(frozen, other(images))
    model(images)
    assert not torch.equal(before["1.running_mean"], model[1].running_mean)


def test_frozen_running_statistics_are_thawed_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(KeyError), frozen_running_statistics(model):
        raise KeyError
    assert [layer.track_running_stats for layer in model] == [True, False]
