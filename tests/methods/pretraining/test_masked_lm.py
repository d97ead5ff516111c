from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.masking import IGNORED, mask_tokens
from selfbench.methods.pretraining.masked_lm import MaskedLm
from selfbench.suite.protocols.adaptation import Vocabulary

V, T = 12, 5
WORDS = Vocabulary(V, 3, (0, 1, 2, 3))


class Words(nn.Module):
    """A bag of words with dropout; the sum of two examples' words is no part of either's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(V, 6)
        self.drop = nn.Dropout(0.1)
        self.layer = nn.Linear(6, 4)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.drop(self.words(ids)).tanh().mean(dim=1))
        return logits


class Head(nn.Module):
    def __init__(self, model: Words) -> None:
        super().__init__()
        self.words = model.words
        self.turn = nn.Linear(6, 6).double()

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        around = self.words(ids).tanh().mean(dim=1, keepdim=True).expand(-1, ids.size(1), -1)
        logits: Tensor = self.turn(around[places]) @ self.words.weight.T
        return logits


@pytest.fixture
def texts(dropout_task: Any) -> Any:
    """The tiny task with its real numbers turned to token ids."""
    made = type(dropout_task)

    def inputs(self: Any, public: Any, indices: Any) -> Tensor:
        numbers = torch.from_numpy(np.array(public["x"][indices]))[:, :T]
        return (4 + (numbers + 2).clamp(0, 3.99) * 2).long()

    changes = {
        "model": lambda self: Words(), "inputs": inputs, "vocabulary": lambda self: WORDS,
        "language_model": lambda self, model: Head(model), "weak": lambda self, inputs, generator: inputs,
    }  # fmt: skip
    return type("Texts", (made,), changes)()


def test_the_loss_equals_a_loop_over_hidden_tokens(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], texts: Any
) -> None:
    method = MaskedLm(rate=0.4)
    labeled, unlabeled = make_batches(make_view(method, texts))
    state = method.view.generator.get_state()
    loss = method.loss(labeled, unlabeled)
    parameters = list(method.language_model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    method.view.generator.set_state(state)
    ids, targets = mask_tokens(unlabeled.x, method.view.generator, WORDS.mask, V, WORDS.special, 0.4)
    total, n = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(ids)):
        for place in range(T):
            if targets[row, place] != IGNORED:
                assert targets[row, place] == unlabeled.x[row, place]
                around = torch.stack([method.model.words.weight[token].tanh() for token in ids[row]]).mean(0)
                z = method.language_model.turn(around) @ method.model.words.weight.T
                total = total + z.exp().sum().log() - z[targets[row, place]]
                n += 1
    assert 10 < n < 70
    assert loss.item() == pytest.approx(total.item() / n, abs=1e-10)
    for mine, theirs in zip(gradients, torch.autograd.grad(total / n, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_it_trains_body_and_head_first_and_the_classifier_afterwards(adapt: Callable[..., Any], texts: Any) -> None:
    result = adapt(MaskedLm(pretrain=0.5, ratio=2, pretrain_lr=0.05), task=texts, limit=1600)
    method = result.method
    assert not method.pretraining
    assert method.language_model.words is method.model.words
    baseline = adapt(Supervised(), task=texts, limit=1600)
    assert not np.array_equal(result.logits[-1], baseline.logits[-1])
    assert method.language_model.turn.weight.grad is not None


def test_counted_passes(adapt: Callable[..., Any], texts: Any) -> None:
    """Steps of 8 x 2 texts up to half of the budget, then of 8 labelled ones."""
    counts = adapt(MaskedLm(ratio=2), task=texts, limit=20 * 8 * 6).counts
    assert counts.passes == 10 * 8 * 6 + 20 * 8 * 3
    assert counts.forward == counts.backward == 10 * 8 * 2 + 20 * 8


def test_hidden_tokens_are_learned(adapt: Callable[..., Any], texts: Any) -> None:
    method = MaskedLm(pretrain=0.9, ratio=2, pretrain_lr=0.2, rate=0.3)
    adapt(method, task=texts, limit=8000)
    pool = method.view.unlabeled
    ids, targets = mask_tokens(pool, torch.Generator().manual_seed(0), WORDS.mask, V, WORDS.special, 0.3)
    places = targets != IGNORED
    with torch.no_grad(), method.view.meter.paused():
        learned = nn.functional.cross_entropy(method.language_model(ids, places), targets[places])
        fresh = texts.language_model(texts.model())
        assert learned < nn.functional.cross_entropy(fresh(ids, places), targets[places]) - 0.1


def test_without_pretraining_it_is_the_baseline_bit_by_bit(adapt: Callable[..., Any], texts: Any) -> None:
    baseline, zero = adapt(Supervised(), task=texts), adapt(MaskedLm(pretrain=0.0), task=texts)
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)


@pytest.mark.parametrize("stop_after", [4, 16, 25])
def test_a_killed_run_goes_on_in_its_phase(adapt: Callable[..., Any], texts: Any, stop_after: int) -> None:
    whole = adapt(MaskedLm(ratio=2), task=texts)
    killed = adapt(MaskedLm(ratio=2), task=texts, checkpoints=0, stop_after=stop_after)
    resumed = adapt(MaskedLm(ratio=2), task=texts)
    assert 0 < killed.counts.passes < whole.counts.passes
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)
