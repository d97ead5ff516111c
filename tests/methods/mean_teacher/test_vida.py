from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from selfbench.methods.common.views import random_views
from selfbench.methods.mean_teacher.vida import Vida, VidaPretrained, adapters_of, add_adapters, split_parameters
from selfbench.methods.self_training.norm import Norm
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source

SMALL = {"views": 3, "high_rank": 16}
METHODS = [
    Vida(**SMALL),
    Vida(**SMALL, optimizer="sgd", loss="sce", restore=0.0, adapter_momentum=0.8, threshold=0.2),
    VidaPretrained(**SMALL, pretrain_steps=2, source_batch=12),
]


def _with_random_adapters(layer: nn.Module) -> nn.Module:
    """`layer` in double precision with an adapter that changes something."""
    model = nn.Sequential(layer).double()
    generator = torch.Generator().manual_seed(1)
    add_adapters(model, 1, 3, generator, in_attention=False)
    (adapter,) = adapters_of(model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
        adapter.scale.copy_(torch.tensor([0.3, 1.7]))
    return model


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (3, 1, 0), (5, 2, 1)])
def test_convolution_adapters_are_one_by_one_convolutions_of_the_window_centres(
    size: int, stride: int, padding: int
) -> None:
    layer = nn.Conv2d(4, 6, size, stride=stride, padding=padding)
    plain = copy.deepcopy(layer).double()
    model = _with_random_adapters(layer)
    (adapter,) = adapters_of(model)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = plain(x)
    padded = F.pad(x, [padding] * 4)
    for i in range(expected.size(2)):
        for j in range(expected.size(3)):
            centre = padded[:, :, i * stride + size // 2, j * stride + size // 2]
            expected[:, :, i, j] += 0.3 * (centre @ adapter.low_down.T) @ adapter.low_up.T
            expected[:, :, i, j] += 1.7 * (centre @ adapter.high_down.T) @ adapter.high_up.T
    torch.testing.assert_close(model(x), expected)


def test_linear_adapters_add_to_the_output() -> None:
    layer = nn.Linear(4, 6)
    plain = copy.deepcopy(layer).double()
    model = _with_random_adapters(layer)
    (adapter,) = adapters_of(model)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    low = (x @ adapter.low_down.T) @ adapter.low_up.T
    high = (x @ adapter.high_down.T) @ adapter.high_up.T
    torch.testing.assert_close(model(x), plain(x) + 0.3 * low + 1.7 * high)


@pytest.mark.parametrize(("loss", "threshold"), [("ce", 0.0), ("sce", 100.0)])
def test_two_steps_equal_a_loop_over_views_and_weights(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, loss: str, threshold: float
) -> None:
    method = Vida(
        **SMALL, loss=loss, threshold=threshold, optimizer="sgd", lr=0.1, adapter_lr=1.0, momentum=0.9,
        adapter_momentum=0.7, restore=0.3,
    )  # fmt: skip
    method.setup(source_model(), source)
    student, teacher, first = (copy.deepcopy(method.model) for _ in range(3))
    velocity: dict[str, Tensor] = {}
    generator = torch.Generator()
    generator.set_state(method.generator.get_state())
    for step, x in enumerate((images[:9], images[9:18])):
        with torch.no_grad():
            logits = [teacher(view) for view in random_views(x, generator, 3)]
        deviations = []
        for b in range(len(x)):
            for k in range(4):
                values = [item[b, k].item() for item in logits]
                centre = sum(values) / 3
                deviations.append(sum((value - centre) ** 2 for value in values) / 2)
        u = 0.1 * sum(deviations) / len(deviations)
        assert u > 0
        low, high = (1 - u, 1 + u) if u >= threshold else (1 + u, 1 - u)
        for adapter in adapters_of(student) + adapters_of(teacher):
            adapter.scale.copy_(torch.tensor([low, high]))
        with torch.no_grad():
            y = teacher(x)
        torch.testing.assert_close(method.predict(x), y)
        for adapter in adapters_of(method.model) + adapters_of(method.teacher):
            torch.testing.assert_close(adapter.scale, torch.tensor([low, high]), rtol=1e-4, atol=0)
        q, log_q = y.softmax(1), y.log_softmax(1)
        log_p = student(x).log_softmax(1)
        value = -(q * log_p).sum(1)
        if loss == "sce":
            value = 0.5 * value - 0.5 * (log_p.exp() * log_q).sum(1)
        names = [name for name, _ in student.named_parameters()]
        gradients = torch.autograd.grad(value.mean(), list(student.parameters()))
        drawn = torch.rand(sum(item.numel() for item in student.parameters()), generator=generator) < 0.3
        start = 0
        with torch.no_grad():
            for name, g, parameter, mine, source_value in zip(
                names, gradients, student.parameters(), teacher.parameters(), first.parameters(), strict=True
            ):
                own = "parametrizations.weight.0" in name
                velocity[name] = 0.9 * velocity.get(name, torch.zeros_like(g)) + g
                parameter -= (1.0 if own else 0.1) * (g + 0.9 * velocity[name])
                mine += (0.3 if own else 0.1) * (parameter - mine)
                mask = drawn[start : start + g.numel()].view_as(g)
                start += g.numel()
                parameter[mask] = source_value[mask]
        for mine, theirs in ((method.model, student), (method.teacher, teacher)):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=f"step {step}")


def test_starts_as_the_source_and_stays_without_learning(stream: Callable[..., Any]) -> None:
    still, norm = stream(Vida(**SMALL, lr=0.0, adapter_lr=0.0)), stream(Norm())
    for mine, theirs in zip(still.logits, norm.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_all_weights_have_a_gradient_and_the_anchor_never_moves(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = Vida(**SMALL, adapter_lr=0.1)
    method.setup(source_model(), source)
    first = copy.deepcopy(method.anchor.state_dict())
    assert len(adapters_of(method.model)) == 3
    for _ in range(3):
        method.predict(images)
    assert all(parameter.grad.abs().max() > 0 for parameter in method.model.parameters())
    assert all(torch.equal(value, first[name]) for name, value in method.anchor.state_dict().items())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_pre_training_moves_the_adapters_alone(source_model: Callable[..., nn.Module], source: Source) -> None:
    fresh = source_model()
    method = VidaPretrained(**SMALL, pretrain_steps=20, source_batch=30, pretrain_lr=0.01)
    method.setup(source_model(), source)
    weights, adapters = split_parameters(method.model)
    state = {name.replace("parametrizations.weight.original", "weight"): value
             for name, value in method.model.state_dict().items()}  # fmt: skip
    assert all(torch.equal(state[name], value) for name, value in fresh.named_parameters())
    assert all(adapter.low_up.abs().max() > 0 for adapter in adapters_of(method.model))
    assert all(parameter.requires_grad for parameter in weights + adapters)
    losses = []
    for model in (Norm(), method):
        if isinstance(model, Norm):
            model.setup(source_model(), source)
        with torch.no_grad():
            losses.append(F.cross_entropy(model.model(source.images(np.arange(60))), source.labels).item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resumed_equals_uninterrupted(stream: Callable[..., Any], method: Any) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize(
    ("method", "passes"), [(Vida(), 40 * 14), (Vida(views=3), 40 * 7), (METHODS[2], 40 * 7 + 2 * 12 * 3)], ids=str
)
def test_counted_passes(stream: Callable[..., Any], method: Any, passes: int) -> None:
    assert stream(dataclasses.replace(method)).counts.passes == passes


def test_group_norm_model_runs(stream: Callable[..., Any]) -> None:
    result = stream(Vida(**SMALL), norm=lambda channels: nn.GroupNorm(1, channels))
    assert all(np.isfinite(logits).all() for logits in result.logits)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)


def test_adapters_can_be_limited_to_attention() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Attention())
    add_adapters(model, 1, 2, torch.Generator(), in_attention=True)
    assert parametrize.is_parametrized(model[1].qkv)
    assert not parametrize.is_parametrized(model[0])
    with pytest.raises(UsageError, match="no linear layer in attention"):
        add_adapters(nn.Sequential(nn.Linear(4, 4)), 1, 2, torch.Generator(), in_attention=True)
    with pytest.raises(UsageError, match="no linear or convolution layer"):
        add_adapters(nn.Sequential(nn.ReLU()), 1, 2, torch.Generator(), in_attention=False)


def test_a_grouped_convolution_takes_adapters_that_its_groups_share() -> None:
    model = _with_random_adapters(nn.Conv2d(4, 6, 3, groups=2, padding=1))
    assert model(torch.zeros(1, 4, 5, 5, dtype=torch.float64)).shape == (1, 6, 5, 5)
