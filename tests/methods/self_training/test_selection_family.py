"""What holds for every stream method that chooses samples by their entropy, and for LAME and MEMO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.lame import Lame
from selfbench.methods.self_training.cmf import Cmf
from selfbench.methods.self_training.deyo import DeYO
from selfbench.methods.self_training.eata import Eata, Eta
from selfbench.methods.self_training.memo import Memo
from selfbench.methods.self_training.norm import Norm
from selfbench.methods.self_training.pseudo_label_stream import PseudoLabelStream
from selfbench.methods.self_training.rdumb import RDumb
from selfbench.methods.self_training.roid import Roid
from selfbench.methods.self_training.sar import Sar
from selfbench.suite.protocols.stream import Source

ALL = {"1.weight", "1.bias", "3.1.weight", "3.1.bias"}
LOWER = {"1.weight", "1.bias"}
CASES = [
    pytest.param(PseudoLabelStream(), ALL, 3, id="pseudo-label"),
    pytest.param(PseudoLabelStream(threshold=0.3, optimizer="sgd"), ALL, 3, id="pseudo-label-threshold"),
    pytest.param(Eta(margin=1.0, d_margin=1.01), ALL, 3, id="eta"),
    pytest.param(Eta(margin=0.98, d_margin=0.99, optimizer="sgd"), ALL, (1, 3), id="eta-sgd"),
    # 3 passes of 20 source images are half an image's pass more for each of the 40 of the stream.
    pytest.param(Eata(margin=1.0, d_margin=1.01, fisher_images=20, fisher_batch=8), ALL, 4.5, id="eata"),
    pytest.param(RDumb(margin=1.0, d_margin=1.01, period=2), ALL, 3, id="rdumb"),
    pytest.param(Sar(margin=1.0), LOWER, 6, id="sar"),
    pytest.param(Sar(margin=1.0, reset_below=0.0, top_share=0.0), ALL, 6, id="sar-all"),
    # Every batch is followed by a recovery, the last one too.
    pytest.param(Sar(margin=1.0, reset_below=1.39), set(), 6, id="sar-recovering"),
    pytest.param(DeYO(margin=1.0, plpd=-1.0), LOWER, 4, id="deyo"),
    pytest.param(Roid(consistency=False), ALL, 3, id="roid-plain"),
    pytest.param(Roid(), ALL, (3, 6), id="roid"),
    pytest.param(Cmf(), ALL, (3, 6), id="cmf"),
    pytest.param(Lame(), set(), 1, id="lame"),
    pytest.param(Memo(views=3), set(), 10, id="memo"),
    pytest.param(Memo(views=2, steps=2), set(), 13, id="memo-steps"),
]


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


@pytest.mark.parametrize(("method", "trained", "per_image"), CASES)
def test_a_run_changes_what_is_declared_and_costs_what_is_documented(
    stream: Callable[..., Any],
    source_model: Callable[..., nn.Module],
    method: Any,
    trained: set[str],
    per_image: Any,
) -> None:
    result = stream(dataclasses.replace(method))
    before, after = source_model().state_dict(), result.method.model.state_dict()
    parameters = {name for name, _ in source_model().named_parameters()}
    changed = {name for name in parameters if not torch.equal(after[name], before[name])}
    assert changed == trained
    assert np.isfinite(np.concatenate(result.logits)).all()
    if isinstance(per_image, tuple):
        assert per_image[0] * 40 < result.counts.passes < per_image[1] * 40
    else:
        assert result.counts.passes == per_image * 40


@pytest.mark.parametrize(("method", "trained", "per_image"), CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    stream: Callable[..., Any], method: Any, trained: set[str], per_image: Any
) -> None:
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    logits = killed.logits + resumed.logits
    assert len(killed.logits) == 2
    assert len(whole.logits) == len(logits) == 5
    for mine, theirs in zip(whole.logits, logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    state = resumed.method.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.method.model.state_dict().items())
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize(("method", "trained", "per_image"), CASES)
def test_group_norm_models_are_served(
    stream: Callable[..., Any], method: Any, trained: set[str], per_image: Any
) -> None:
    result = stream(dataclasses.replace(method), norm=_group)
    assert np.isfinite(np.concatenate(result.logits)).all()


ZERO = [
    PseudoLabelStream(lr=0.0),
    Eta(lr=0.0, margin=1.0),
    Eata(lr=0.0, margin=1.0, fisher_images=20),
    RDumb(lr=0.0, margin=1.0),
    Sar(lr=0.0, margin=1.0),
    DeYO(lr=0.0, margin=1.0, plpd=-1.0),
    Roid(lr=0.0, prior_correction=False),
    Cmf(lr=0.0, prior_correction=False),
]


@pytest.mark.parametrize("method", ZERO, ids=lambda method: type(method).__name__)
def test_with_a_rate_of_zero_they_are_batch_statistics(stream: Callable[..., Any], method: Any) -> None:
    zero, norm = stream(method), stream(Norm())
    for mine, theirs in zip(zero.logits, norm.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("method", [case.values[0] for case in CASES], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_batches_give_finite_logits(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, method: Any, size: int
) -> None:
    one = dataclasses.replace(method)
    one.setup(source_model(), source)
    for _ in range(3):
        logits = one.predict(images[:size])
        assert logits.shape == (size, 4)
        assert not logits.requires_grad
        assert logits.isfinite().all()
