from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from selfbench.methods.common.iabn import InstanceAwareNorm, use_instance_aware_norm
from selfbench.suite.errors import UsageError


def _layer(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    layer = kind(3).double().eval()
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
            tensor.uniform_(0.5, 1.5)
    return layer


def _by_hand(x: np.ndarray, layer: nn.Module, k: float, batch: bool) -> np.ndarray:
    """Channel by channel and image by image, with the shrinkage written as three cases."""

    def shrink(value: float, width: float) -> float:
        if value > width:
            return value - width
        return value + width if value < -width else 0.0

    out = np.empty_like(x)
    for c in range(x.shape[1]):
        mean, var = layer.running_mean[c].item(), layer.running_var[c].item()
        if batch:
            mean, var = x[:, c].mean(), x[:, c].var(ddof=1)
        for b in range(x.shape[0]):
            values = x[b, c].ravel()
            n = len(values)
            m, v = mean, var
            if n > 1:
                m += shrink(values.mean() - mean, k * np.sqrt((var + layer.eps) / n))
                v = max(0.0, v + shrink(values.var(ddof=1) - var, k * (var + layer.eps) * np.sqrt(2 / (n - 1))))
            normal = (x[b, c] - m) / np.sqrt(v + layer.eps)
            out[b, c] = normal * layer.weight[c].item() + layer.bias[c].item()
    return out


@pytest.mark.parametrize("k", [0.0, 0.7, 4.0, 1e6])
@pytest.mark.parametrize("batch", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm2d, (4, 5)), (nn.BatchNorm1d, (9,)), (nn.BatchNorm1d, ())])
def test_the_layer_equals_the_same_by_hand(
    k: float, batch: bool, kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    layer = _layer(kind)
    before = copy.deepcopy(layer)
    wrap = InstanceAwareNorm(layer, k).train(batch)
    x = np.random.default_rng(2).normal(size=(6, 3, *shape)) * 2 + 0.3
    x[0] += 3.0
    x[1] *= 5.0
    got = wrap(torch.from_numpy(x)).detach().numpy()
    assert np.abs(got - _by_hand(x, before, k, batch)).max() < 1e-10
    for name, new in (("running_mean", x.swapaxes(0, 1).reshape(3, -1).mean(1)),
                      ("running_var", x.swapaxes(0, 1).reshape(3, -1).var(1, ddof=1))):  # fmt: skip
        old = getattr(before, name).numpy()
        expected = 0.9 * old + 0.1 * new if batch else old
        assert np.abs(getattr(wrap, "mean" if name.endswith("mean") else "var").numpy() - expected).max() < 1e-12


def test_an_infinite_width_is_batch_norm(source_model: Callable[..., nn.Module]) -> None:
    x = torch.rand(7, 3, 8, 8, dtype=torch.float64)
    plain, wrapped = source_model().double(), source_model().double()
    wraps = use_instance_aware_norm(wrapped, 1e9)
    assert len(wraps) == 2
    torch.testing.assert_close(wrapped(x), plain(x), rtol=0, atol=1e-10)
    narrow = source_model().double()
    use_instance_aware_norm(narrow, 0.5)
    assert (narrow(x) - plain(x)).abs().max() > 1e-3


def test_training_mode_leaves_the_wrapped_layer_alone(source_model: Callable[..., nn.Module]) -> None:
    model = source_model()
    wraps = use_instance_aware_norm(model, 4.0)
    model.train()
    model(torch.rand(7, 3, 8, 8))
    for wrap in wraps:
        assert wrap.training
        assert not wrap.layer.training
        assert torch.equal(wrap.layer.running_mean, torch.zeros_like(wrap.mean))


def test_models_without_running_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match="no batch norm"):
        use_instance_aware_norm(nn.Sequential(nn.GroupNorm(1, 3)), 4.0)
    with pytest.raises(UsageError, match="statistics"):
        use_instance_aware_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), 4.0)
