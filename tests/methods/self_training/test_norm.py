from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.source import SourceModel
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.protocols.stream import Source

EPS = 1e-5


def _mixed(x: np.ndarray, layer: nn.BatchNorm1d, w: float) -> np.ndarray:
    """The layer by hand: biased variance of the batch, running variance of the source."""
    out = np.empty_like(x)
    for channel in range(x.shape[1]):
        column = [float(value) for value in x[:, channel]]
        mean = sum(column) / len(column)
        var = sum((value - mean) ** 2 for value in column) / len(column)
        mu = w * float(layer.running_mean[channel]) + (1 - w) * mean
        sigma = (w * float(layer.running_var[channel]) + (1 - w) * var + EPS) ** 0.5
        gamma, beta = layer.weight[channel].item(), layer.bias[channel].item()
        out[:, channel] = [(value - mu) / sigma * gamma + beta for value in column]
    return out


@pytest.mark.parametrize("w", [0.0, 0.2, 0.7, 1.0])
def test_two_layers_equal_the_same_by_hand(source: Source, w: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                tensor.uniform_(0.5, 1.5)
    x = 2.0 * np.random.default_rng(0).normal(size=(7, 3)) + 1.0
    hidden = _mixed(x, model[0], w) @ model[1].weight.detach().numpy().T + model[1].bias.detach().numpy()
    expected = _mixed(hidden, model[2], w)
    method = Norm(source_weight=w)
    method.setup(model, source)
    assert np.abs(method.predict(torch.from_numpy(x)).numpy() - expected).max() < 1e-12
    # Nothing is kept: another batch in between changes no later prediction.
    method.predict(torch.from_numpy(x[:4] - 3.0))
    assert np.abs(method.predict(torch.from_numpy(x)).numpy() - expected).max() < 1e-12


def test_weight_one_is_the_source_model_bit_by_bit(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method, frozen = Norm(source_weight=1.0), SourceModel()
    method.setup(source_model(), source)
    frozen.setup(source_model(), source)
    assert torch.equal(method.predict(images), frozen.predict(images))


def test_weight_zero_is_training_mode_without_dropout_bit_by_bit(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method, model = Norm(), source_model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    method.setup(source_model(), source)
    logits = method.predict(images)
    assert torch.equal(logits, model(images))
    assert not logits.requires_grad


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_only_statistics_change(
    stream: Callable[..., object], source_model: Callable[..., nn.Module], images: Tensor, w: float
) -> None:
    method = Norm(source_weight=w)
    result = stream(method)
    expected = source_model().state_dict()
    for name, value in method.model.state_dict().items():
        if "running" not in name:
            assert torch.equal(value, expected[name]), name
    assert not any(parameter.requires_grad for parameter in method.model.parameters())
    assert result.counts.passes == len(images)
