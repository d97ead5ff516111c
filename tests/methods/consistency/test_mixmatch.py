from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfbench.methods.common.mixup import mixing_shares
from selfbench.methods.consistency.mixmatch import MixMatch
from selfbench.suite.errors import UsageError


def _slow(method: MixMatch, labeled: Any, unlabeled: Any, shares: Tensor, order: Tensor, weight: float) -> Tensor:
    """One example at a time."""
    model, n = method.model, len(labeled)
    guesses = []
    for first, second in zip(unlabeled.weak, unlabeled.weak2, strict=True):
        with torch.no_grad():
            pair = [model(view[None])[0].softmax(0).tolist() for view in (first, second)]
        raised = [((a + b) / 2) ** (1 / method.temperature) for a, b in zip(*pair, strict=True)]
        guesses.append([a / sum(raised) for a in raised])
    inputs = [*labeled.weak, *unlabeled.weak, *unlabeled.weak2]
    targets = [[float(k == y) for k in range(4)] for y in labeled.y.tolist()] + guesses + guesses
    supervised, own = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for index, (other, share) in enumerate(zip(order.tolist(), shares.double().tolist(), strict=True)):
        x = share * inputs[index] + (1 - share) * inputs[other]
        p = [share * a + (1 - share) * b for a, b in zip(targets[index], targets[other], strict=True)]
        q = model(x[None])[0].softmax(0)
        if index < n:
            supervised = supervised - sum(a * b.log() for a, b in zip(p, q, strict=True))
        else:
            own = own + sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 4
    return supervised / n + weight * own / (2 * len(unlabeled))


@pytest.mark.parametrize(("progress", "share"), [(0.1, 0.25), (0.5, 1.0)])
@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "alpha": 0.2}])
def test_loss_and_gradient_equal_a_loop_over_examples(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], progress: float, share: float, changes: Any
) -> None:
    method = MixMatch(weight=6.0, ramp=0.4, **changes)
    view = make_view(method, progress=progress)
    labeled, unlabeled = make_batches(view)
    state, n = view.generator.get_state(), len(labeled) + 2 * len(unlabeled)
    shares = mixing_shares(n, method.alpha, view.generator)
    order = torch.randperm(n, generator=view.generator)
    view.generator.set_state(state)
    slow = _slow(method, labeled, unlabeled, shares, order, 6.0 * share)
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    parameters = list(method.model.parameters())
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_steps_mix_anew_and_equal_generators_mix_alike(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = MixMatch()
    view = make_view(method)
    labeled, unlabeled = make_batches(view)
    state = view.generator.get_state()
    first, second = method.loss(labeled, unlabeled).item(), method.loss(labeled, unlabeled).item()
    view.generator.set_state(state)
    assert method.loss(labeled, unlabeled).item() == first != second


def test_token_ids_are_refused_unless_the_weight_is_zero(make_view: Callable[..., Any], dropout_task: Any) -> None:
    class Tokens(type(dropout_task)):
        def inputs(self, public: Any, indices: Any) -> Tensor:
            return super().inputs(public, indices).long()

    with pytest.raises(UsageError, match=r"mixmatch mixes inputs, .* Tokens are int64"):
        make_view(MixMatch(), Tokens())
    make_view(MixMatch(weight=0.0), Tokens())
