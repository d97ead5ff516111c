from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.masking import IGNORED, mask_tokens
from selfbench.methods.pretraining.ppt import Ppt

POOL, BATCH = 68, 8


def small(**changes: Any) -> Ppt:
    return Ppt(**{"ratio": 1, **changes})


def in_pretraining(method: Ppt) -> None:
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=method.view.generator, dtype=parameter.dtype))
    method._label()
    method.phase, method.labelled = 1, True


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_of_the_pretraining_equals_a_loop(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], text_task: Any, weight: float
) -> None:
    method = small(masked_weight=weight, rate=0.4)
    view = make_view(method, text_task)
    labeled, unlabeled = make_batches(view)
    in_pretraining(method)
    for module in method.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    state = view.generator.get_state()
    words = text_task.vocabulary()
    ids, hidden = mask_tokens(unlabeled.x, view.generator, words.mask, words.size, words.special, 0.4)
    view.generator.set_state(state)
    expected = torch.zeros((), dtype=torch.float64)
    for u, j in zip(unlabeled.weak, unlabeled.index.tolist(), strict=True):
        z = method.model(u[None])[0]
        expected = expected + (z.exp().sum().log() - z[method.targets[j]]) / len(unlabeled)
    if weight:
        n = int((hidden != IGNORED).sum())
        for row, targets in zip(ids, hidden, strict=True):
            for place in torch.nonzero(targets != IGNORED).flatten().tolist():
                chosen = torch.zeros_like(row, dtype=torch.bool)[None]
                chosen[0, place] = True
                z = method.language_model(row[None], chosen)[0]
                expected = expected + weight * (z.exp().sum().log() - z[targets[place]]) / n
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    ((parameters, _),) = method.parameter_groups()
    mine = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert sum(part.abs().max() > 0 for part in mine) > 10


def test_labels_make_the_round_trip_and_the_model_begins_anew(make_view: Callable[..., Any], text_task: Any) -> None:
    method = small()
    view = make_view(method, text_task)
    fresh = {name: value.clone() for name, value in method.model.state_dict().items()}
    with torch.no_grad():
        method.model.head.weight.add_(torch.randn(4, 8, generator=view.generator, dtype=torch.float64))
        expected = [method.model.eval()(u[None])[0].argmax().item() for u in view.unlabeled]
    assert len(set(expected)) > 1
    method._label()
    assert method.targets.tolist() == expected
    assert all(torch.equal(value, fresh[name]) for name, value in method.model.state_dict().items())


def test_no_pretraining_is_the_supervised_baseline_bit_by_bit(adapt: Callable[..., Any], text_task: Any) -> None:
    baseline, none = adapt(Supervised(), text_task), adapt(small(pretrain=0.0), text_task)
    for mine, theirs in zip(none.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert none.counts == dataclasses.replace(baseline.counts, seconds=none.counts.seconds)
    assert not np.array_equal(adapt(small(), text_task).logits[-1], baseline.logits[-1])


def test_counted_passes(adapt: Callable[..., Any], text_task: Any) -> None:
    """Four steps of the teacher, the pool, three steps of pre-training, five of fine-tuning."""
    step, both = 3 * BATCH, 6 * BATCH
    limit = 4 * step + POOL + 3 * both + 5 * step
    teacher = 4 * step / limit
    pretrain = (POOL + 3 * both) / (limit - 4 * step)
    result = adapt(small(teacher=teacher, pretrain=pretrain), text_task, limit=limit)
    assert result.counts.passes == limit
    assert result.method.phase == 2


@pytest.mark.parametrize("stop_after", [3, 10, 18])
def test_a_run_killed_in_any_phase_resumes_bit_equal(
    adapt: Callable[..., Any], text_task: Any, stop_after: int
) -> None:
    whole = adapt(small(), text_task, limit=800)
    killed = adapt(small(), text_task, limit=800, checkpoints=0, stop_after=stop_after)
    assert 0 < killed.counts.passes < whole.counts.passes
    resumed = adapt(small(), text_task, limit=800)
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
