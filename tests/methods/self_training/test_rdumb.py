from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from selfbench.methods.self_training.eata import Eta
from selfbench.methods.self_training.rdumb import RDumb
from selfbench.suite.protocols.stream import Source

SHARED = {"margin": 1.0, "d_margin": 0.99, "lr": 0.01}


def test_every_period_is_an_eta_of_its_own(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = RDumb(period=3, **SHARED)
    method.setup(source_model(), source)
    batches = images.split(5)
    moved = False
    for start in range(0, len(batches), 3):
        eta = Eta(**SHARED)
        eta.setup(source_model(), source)
        for batch in batches[start : start + 3]:
            mine = method.predict(batch)
            assert torch.equal(mine, eta.predict(batch))
        moved |= eta.average is not None
    assert moved


def test_batches_without_a_step_count_too(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = RDumb(period=2, **SHARED)
    method.setup(source_model(), source)
    method.e0 = 0.0
    method.predict(images)
    method.e0 = 2.0
    method.predict(images)
    assert method.average is None
    assert all(torch.equal(part, start) for part, start in zip(method.theta, method.start, strict=True))
    method.predict(images)
    assert method.average is not None
