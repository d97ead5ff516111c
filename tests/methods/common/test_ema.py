from __future__ import annotations

import numpy as np
import torch
from torch import nn

from selfbench.methods.common.ema import ema_update


def test_parameters_follow_the_recursion_and_buffers_stay() -> None:
    torch.manual_seed(0)
    teacher, student = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    student.running_mean.fill_(9.0)
    expected = teacher.weight.detach().numpy().copy()
    for _ in range(4):
        with torch.no_grad():
            student.weight.normal_()
        expected = 0.7 * expected + 0.3 * student.weight.detach().numpy()
        ema_update(teacher, student, 0.7)
    np.testing.assert_allclose(teacher.weight.detach().numpy(), expected, rtol=0, atol=1e-15)
    assert teacher.running_mean.tolist() == [0.0, 0.0, 0.0]
    assert teacher.weight.grad_fn is None


def test_decay_one_keeps_the_teacher_and_decay_zero_copies_the_student() -> None:
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    before = teacher.weight.clone()
    ema_update(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before)
    ema_update(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)
