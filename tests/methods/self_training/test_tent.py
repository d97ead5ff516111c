from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.losses import entropy
from selfbench.methods.self_training.norm import Norm
from selfbench.methods.self_training.tent import Tent
from selfbench.suite import registry
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source

EPS = 1e-5


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Batch norm, then a linear layer: logits, mean entropy, and its gradients in gamma and beta by the chain rule."""
    xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + EPS)
    z = (xhat * gamma + beta) @ w.T + b
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    p = np.exp(log_p)
    h = -(p * log_p).sum(1, keepdims=True)
    dz = -p * (log_p + h) / len(x)
    dy = dz @ w
    return z, h.mean(), (dy * xhat).sum(0), dy.sum(0)


def _small() -> nn.Sequential:
    torch.manual_seed(2)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4)).double().eval()
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 1.5)
        model[0].bias.normal_()
        model[0].running_mean.normal_()
    return model


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("steps", [1, 2])
def test_updates_equal_the_chain_rule_and_the_optimiser_by_hand(source: Source, optimizer: str, steps: int) -> None:
    model = _small()
    w, b = (item.detach().numpy().copy() for item in model[1].parameters())
    theta = [item.detach().numpy().copy() for item in model[0].parameters()]
    first, second = [np.zeros(5), np.zeros(5)], [np.zeros(5), np.zeros(5)]
    lr, step = 0.02, 0
    method = Tent(lr=lr, optimizer=optimizer, steps=steps)
    method.setup(model, source)
    random = np.random.default_rng(1)
    for _ in range(3):
        x = random.normal(size=(9, 5)) + 0.4
        for _ in range(steps):
            z, _, *gradients = _forward(x, *theta, w, b)
            step += 1
            for i, g in enumerate(gradients):
                if optimizer == "adam":
                    first[i] = 0.9 * first[i] + 0.1 * g
                    second[i] = 0.999 * second[i] + 0.001 * g * g
                    m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
                    theta[i] = theta[i] - lr * m / (np.sqrt(v) + 1e-8)
                else:
                    first[i] = 0.9 * first[i] + g
                    theta[i] = theta[i] - lr * (g + 0.9 * first[i])
        logits = method.predict(torch.from_numpy(x))
        assert np.abs(logits.numpy() - z).max() < 1e-10  # of the last forward, before its update
        assert np.abs(model[0].weight.detach().numpy() - theta[0]).max() < 1e-10
        assert np.abs(model[0].bias.detach().numpy() - theta[1]).max() < 1e-10


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
def test_gradient_equals_central_differences_for_all_kinds_of_norm(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, norm: Callable[[int], nn.Module]
) -> None:
    method = Tent(lr=1e-5)
    model = source_model(norm).double()
    method.setup(model, source)
    x = images.double()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 4
    entropy(model(x)).mean().backward()
    for parameter in trained:
        analytic = parameter.grad[0].item()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[0] += step
                values.append(entropy(model(x)).mean().item())
                parameter[0] -= step
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(analytic, rel=1e-4, abs=1e-9)
        assert analytic != 0.0


def test_first_prediction_precedes_any_update(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    tent, norm = Tent(lr=0.1), Norm()
    tent.setup(source_model(), source)
    norm.setup(source_model(), source)
    first, before = tent.predict(images), norm.predict(images)
    assert torch.equal(first, before)
    assert not first.requires_grad
    assert not torch.equal(tent.predict(images), before)


def test_entropy_falls(source_model: Callable[..., nn.Module], source: Source, images: Tensor) -> None:
    tent = Tent(lr=0.01)
    tent.setup(source_model(), source)
    values = [entropy(tent.predict(images)).mean().item() for _ in range(5)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
def test_only_scales_and_shifts_change(
    stream: Callable[..., object],
    source_model: Callable[..., nn.Module],
    images: Tensor,
    norm: Callable[[int], nn.Module],
) -> None:
    method = Tent()
    result = stream(method, norm)
    before = source_model(norm).state_dict()
    changed = {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias", "3.1.weight", "3.1.bias"}
    assert result.counts.passes == 3 * len(images)


def test_a_model_without_norm_layers_is_refused(source: Source) -> None:
    with pytest.raises(UsageError, match="no norm layer"):
        Tent().setup(nn.Sequential(nn.Linear(2, 2)), source)


@pytest.mark.parametrize(
    ("preset", "lr", "optimizer"),
    [
        ("cifar10", 1e-3, "adam"),
        ("cifar100", 1e-3, "adam"),
        ("imagenet", 2.5e-4, "sgd"),
        ("domainnet126", 2.5e-4, "sgd"),
    ],
)
def test_values_of_the_public_configuration(preset: str, lr: float, optimizer: str) -> None:
    """classification/cfgs of mariodoebler/test-time-adaptation."""
    assert registry.get("method", "tent").params(preset=preset) == {"lr": lr, "optimizer": optimizer, "steps": 1}
