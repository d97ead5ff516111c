from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.waveblock import WaveBlock
from selfbench.methods.mean_teacher.mutual_mean_teacher import MutualMeanTeacher

BATCH = 8


def _shake(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def _log_softmax(model: nn.Module, x: Tensor) -> Tensor:
    z = model(x[None])[0]
    return z - z.exp().sum().log()


def _slow(method: MutualMeanTeacher, labeled: Any, unlabeled: Any, weight: float) -> Tensor:
    """One example, one network, one class at a time."""
    total = torch.zeros((), dtype=torch.float64)
    x, u = (labeled.weak, labeled.weak2), (unlabeled.weak, unlabeled.weak2)
    for i in range(2):
        for one, y in zip(x[i], labeled.y.tolist(), strict=True):
            total = total - _log_softmax(method.students[i], one)[y] / len(labeled)
        for b in range(len(unlabeled)):
            taught = [_log_softmax(method.teachers[j], u[j][b]).exp().tolist() for j in range(2)]
            together = [p + q for p, q in zip(*taught, strict=True)]
            hard = together.index(max(together))
            log_p = _log_softmax(method.students[i], u[i][b])
            for k in range(len(log_p)):
                smooth = (1 - method.smoothing) * (k == hard) + method.smoothing / len(log_p)
                target = (1 - method.soft) * smooth + method.soft * taught[1 - i][k]
                total = total - weight * target * log_p[k] / len(unlabeled)
    return total


@pytest.mark.parametrize(("progress", "t"), [(0.0, 0.0), (0.2, 0.5), (0.9, 1.0)])
@pytest.mark.parametrize("soft", [0.5, 0.8])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], progress: float, t: float, soft: float
) -> None:
    method = MutualMeanTeacher(weight=3.0, soft=soft)
    labeled, unlabeled = make_batches(make_view(method, progress=progress))
    for seed, network in enumerate([*method.students, *method.teachers]):
        _shake(network, seed)
    parameters = [parameter for group, _ in method.parameter_groups() for parameter in group]
    slow = _slow(method, labeled, unlabeled, 3.0 * math.exp(-5 * (1 - t) ** 2))
    expected = torch.autograd.grad(slow, parameters)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_networks_begin_elsewhere_and_both_are_trained(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = MutualMeanTeacher()
    view = make_view(method)
    labeled, unlabeled = make_batches(view)
    one, two = method.students
    assert torch.equal(view.new_model()[0].weight, one[0].weight)
    assert torch.equal(view.new_model("second")[0].weight, two[0].weight)
    assert one is method.model
    assert not torch.equal(one[0].weight, two[0].weight)
    assert all(torch.equal(t[0].weight, s[0].weight) for t, s in zip(method.teachers, method.students, strict=True))
    parameters = [parameter for group, _ in method.parameter_groups() for parameter in group]
    assert {id(parameter) for parameter in parameters} == {id(p) for net in (one, two) for p in net.parameters()}
    method.loss(labeled, unlabeled).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters)
    for teacher in method.teachers:
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert method.predictor() is method.teachers[0]


def test_the_unlabelled_loss_has_a_gradient_proportional_to_its_weight(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    gradients = {}
    for weight in (1.0, 2.0, 4.0):
        method = MutualMeanTeacher(weight=weight)
        labeled, unlabeled = make_batches(make_view(method))
        parts = torch.autograd.grad(
            method.loss(labeled, unlabeled), [p for net in method.students for p in net.parameters()]
        )
        gradients[weight] = torch.cat([part.flatten() for part in parts])
    own = gradients[2.0] - gradients[1.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[4.0] - gradients[1.0], 3 * own, rtol=0, atol=1e-12)


def test_the_teachers_are_the_recursion_by_hand(make_view: Callable[..., Any]) -> None:
    method = MutualMeanTeacher(decay=0.9)
    make_view(method)
    expected = [[p.detach().numpy().copy() for p in teacher.parameters()] for teacher in method.teachers]
    for step in range(1, 14):
        alpha = min(1 - 1 / step, 0.9)
        for number, student in enumerate(method.students):
            _shake(student, 10 * step + number)
            for index, parameter in enumerate(student.parameters()):
                moved = alpha * expected[number][index] + (1 - alpha) * parameter.detach().numpy()
                expected[number][index] = moved
        method.after_step()
        for teacher, values in zip(method.teachers, expected, strict=True):
            for mine, theirs in zip(teacher.parameters(), values, strict=True):
                np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-13)


def test_weight_zero_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(MutualMeanTeacher(weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    assert zero.method.predictor() is None
    assert not np.array_equal(adapt(MutualMeanTeacher()).logits[-1], baseline.logits[-1])


def test_counted_passes(adapt: Callable[..., Any]) -> None:
    limit = 4 * BATCH * (6 * (1 + 2) + 2 * 2)
    result = adapt(MutualMeanTeacher(ratio=2), limit=limit)
    assert result.counts.passes == result.at[-1] == limit
    assert result.method.updates == 4


class Images(nn.Sequential):
    """The six numbers of an example as an image of 3 x 2, three stages with convolutions, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 3, 2)), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1),
            nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Dropout(0.2), nn.Flatten(), nn.Linear(24, 4),
        )  # fmt: skip
        self.double()


def test_wave_blocks_stand_in_all_four_networks(make_view: Callable[..., Any], dropout_task: Any) -> None:
    dropout_task.net = Images
    for wave, places in ((1.0, 0), (1.5, 2)):
        method = MutualMeanTeacher(wave=wave)
        make_view(method, dropout_task)
        for network in [*method.students, *method.teachers]:
            hooks = [hook for layer in network for hook in layer._forward_pre_hooks.values()]
            blocks = [hook for hook in hooks if isinstance(hook, WaveBlock)]
            assert [(block.rate, block.share) for block in blocks] == [(1.5, 0.3)] * places


@pytest.mark.parametrize("wave", [1.0, 1.5])
def test_a_killed_run_resumes_bit_equal(adapt: Callable[..., Any], dropout_task: Any, wave: float) -> None:
    dropout_task.net = Images

    def run(**options: Any) -> Any:
        return adapt(MutualMeanTeacher(ratio=2, wave=wave, ramp=0.1), task=dropout_task, limit=3000, **options)

    whole, killed, resumed = run(), run(checkpoints=0, stop_after=5), run()
    assert 0 < killed.counts.passes < whole.counts.passes
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(
        [*whole.method.students, *whole.method.teachers],
        [*resumed.method.students, *resumed.method.teachers],
        strict=True,
    ):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


def test_without_unlabelled_examples_it_is_the_loss_of_the_labelled_ones(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    """A pool may be empty: the mean over none of it is no number."""
    method = MutualMeanTeacher()
    labeled, unlabeled = make_batches(make_view(method), unlabeled=0)
    expected = nn.functional.cross_entropy(method.model(labeled.weak), labeled.y)
    assert torch.equal(method.loss(labeled, unlabeled), expected)
    assert expected.isfinite()
