from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.prokd import ProKD, alignment, moved
from selfbench.suite.errors import UsageError

K = 4
T = 5
BATCH = 8


class Words(nn.Module):
    """(B, T, D) and whether each token has a class, in the last column -> logits (B, T, K) of these tokens alone."""

    def __init__(self, alone: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
        self.head = nn.Linear(6, K)
        self.alone = alone
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, 3] > 0
        states = self.body(x[:, :, :3])
        if not self.alone:
            return self.head(states)
        logits = states.new_zeros(*kept.shape, K)
        logits[kept] = self.head(states[kept])
        return logits


@pytest.fixture
def words(dropout_task: Any) -> Any:
    """A task of tokens: the numbers of an example are spread over five tokens, of which not all have a class."""

    class OfWords(type(dropout_task)):
        net = Words

        def inputs(self, public: Any, indices: Any) -> Tensor:
            x = torch.from_numpy(np.array(public["x"][indices]))
            spread = torch.stack([x.roll(shift, 1)[:, :3] for shift in range(T)], dim=1)
            kept = (x[:, :T] > -0.8).double()
            kept[:, 0] = 1.0
            return torch.cat([spread, kept[:, :, None]], dim=2)

        def places(self, inputs: Tensor) -> Tensor:
            return inputs[:, :, 3] > 0

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)

        def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
            noise = 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
            return inputs + noise * torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=inputs.dtype)

    return OfWords()


def _cross_entropy(z: Tensor, y: int) -> Tensor:
    return z.exp().sum().log() - z[y]


def _examples(view: Any, batch: Any, model: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(the example alone, its features, its logits), one after the other."""
    rows = []
    for x in batch.weak:
        if x.dim() == 1:
            h = nn.Sequential(*list(model)[:-1])(x[None])[0]
            rows.append((x, h, model(x[None])[0]))
            continue
        for token in x[x[:, 3] > 0]:
            h = model.body(token[:3])
            rows.append((token, h, model.head(h)))
    return rows


def _labels(view: Any, labeled: Any) -> Any:
    """The batch with classes for its tokens, where the task has tokens."""
    if labeled.x.dim() == 3:
        kept = view.task.places(labeled.x)
        y = (torch.arange(kept.numel()).view(kept.shape) * 7 % 11) % K
        labeled.y = torch.where(kept, y, -100)
    return labeled


def _slow_alignment(means: dict[int, Tensor], prototypes: Tensor, t: float) -> Tensor:
    known = [k for k in range(K) if prototypes[k].isfinite().all()]
    terms = []
    for k, m in means.items():
        if k in known:
            cosines = torch.stack([m @ prototypes[j] / (m.norm() * prototypes[j].norm()) for j in known]) / t
            terms.append(_cross_entropy(cosines, known.index(k)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("tokens", [False, True], ids=["classes", "tokens"])
def test_a_step_of_the_teacher_equals_a_loop(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], words: Any, tokens: bool
) -> None:
    method = ProKD(align=0.7, contrast=0.4, momentum=0.8)
    view = make_view(method, words if tokens else None)
    generator = torch.Generator().manual_seed(5)
    width = 6 if tokens else 12
    for name in ("source", "target"):
        before = torch.randn(K, width, generator=generator, dtype=torch.float64)
        before[2 if name == "source" else 1] = torch.inf
        setattr(method, name, before)
    old = {name: getattr(method, name).clone() for name in ("source", "target")}
    labeled, unlabeled = make_batches(view, unlabeled=5)
    labeled = _labels(view, labeled)
    own = _examples(view, labeled, method.model)
    other = _examples(view, unlabeled, method.model)
    classes = {"source": labeled.y[labeled.y >= 0].tolist(), "target": [int(z.argmax()) for _, _, z in other]}
    slow = torch.stack([_cross_entropy(z, y) for (_, _, z), y in zip(own, classes["source"], strict=True)]).mean()
    means, now = {}, {}
    for name, rows in (("source", own), ("target", other)):
        kept = {k: [h for (_, h, _), y in zip(rows, classes[name], strict=True) if y == k] for k in range(K)}
        means[name] = {k: torch.stack(found).mean(0) for k, found in kept.items() if found}
        now[name] = old[name].clone()
        for k, mean in means[name].items():
            whole = old[name][k].isinf().any()
            now[name][k] = mean.detach() if whole else 0.8 * old[name][k] + 0.2 * mean.detach()
    assert {0, 1, 2, 3} - set(means["target"])
    assert len(means["target"]) > 1
    apart = _slow_alignment(means["source"], now["target"], 0.4) + _slow_alignment(means["target"], now["source"], 0.4)
    slow = slow + 0.7 * apart / 2
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    parameters = list(method.model.parameters())
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    for name in ("source", "target"):
        torch.testing.assert_close(getattr(method, name), now[name], rtol=0, atol=1e-12)
        assert not getattr(method, name).requires_grad


def _student(method: Any, view: Any) -> None:
    """The method after its teacher's training, with a student that is not it and a teacher that is not sure."""
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=view.generator, dtype=parameter.dtype))
    method.round = 1
    method._begin()


@pytest.mark.parametrize("tokens", [False, True], ids=["classes", "tokens"])
def test_a_step_of_the_student_equals_a_loop(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], words: Any, tokens: bool
) -> None:
    method = ProKD(weight=0.6, distil=2.0, temperature=0.05, momentum=0.7)
    view = make_view(method, words if tokens else None)
    _student(method, view)
    labeled, unlabeled = make_batches(view)
    before = method.target.clone()
    mine, theirs = (_examples(view, unlabeled, model) for model in (method.model, method.guide))
    distance, entropy = [], []
    corrected, kept = 0, {k: [] for k in range(K)}
    for (_, h, z), (_, _, g) in zip(mine, theirs, strict=True):
        q = g.detach().softmax(0)
        near = torch.stack([-(h.detach() - c).norm() / 0.05 for c in before]).exp()
        y = int((near / near.sum() * q).argmax())
        corrected += y != int(q.argmax())
        kept[y].append(h.detach())
        distance.append((z.exp() / z.exp().sum() - q).square().sum() / K)
        entropy.append(_cross_entropy(z, y))
    assert 0 < corrected < len(mine)
    slow = 2.0 * torch.stack(distance).mean() + 0.6 * torch.stack(entropy).mean()
    loss = method.loss(labeled, unlabeled)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-10)
    parameters = list(method.model.parameters())
    for one, two in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)
    for k, rows in kept.items():
        moved_to = 0.7 * before[k] + 0.3 * torch.stack(rows).mean(0) if rows else before[k]
        torch.testing.assert_close(method.target[k], moved_to, rtol=0, atol=1e-12)
    assert not method.target.requires_grad
    assert not any(parameter.requires_grad for parameter in method.guide.parameters())


@pytest.mark.parametrize("student", ["new", "teacher"])
def test_the_student_begins_with_means_over_the_pool(make_view: Callable[..., Any], student: str) -> None:
    method = ProKD(student=student)
    view = make_view(method)
    first = {name: value.clone() for name, value in method.model.state_dict().items()}
    with torch.no_grad():
        method.model[-1].bias[3] = -100.0
    taught = {name: value.clone() for name, value in method.model.state_dict().items()}
    method._begin()
    begun = first if student == "new" else taught
    assert all(torch.equal(value, begun[name]) for name, value in method.model.state_dict().items())
    assert all(torch.equal(value, taught[name]) for name, value in method.guide.state_dict().items())
    with torch.no_grad():
        classes = method.guide(view.unlabeled).argmax(1)
        h = nn.Sequential(*list(method.model)[:-1])(view.unlabeled)
    for k in range(3):
        if (classes == k).any():
            torch.testing.assert_close(method.target[k], h[classes == k].mean(0), rtol=0, atol=1e-12)
    assert method.target[3].isinf().all()


def test_a_class_that_was_never_met_is_never_a_label(
    make_view: Callable[..., Any], make_batches: Callable[..., Any]
) -> None:
    method = ProKD()
    _student(method, make_view(method))
    method.target[0] = torch.inf
    loss = method.loss(*make_batches(method.view))
    loss.backward()
    assert loss.isfinite()
    assert method.target[0].isinf().all()
    assert all(parameter.grad.isfinite().all() for parameter in method.model.parameters())


def test_nothing_is_aligned_where_no_class_has_been_met_on_both_sides() -> None:
    means = torch.randn(K, 3, dtype=torch.float64).requires_grad_()
    met = torch.tensor([True, False, False, True])[:, None]
    nowhere = torch.full((K, 3), torch.inf, dtype=torch.float64)
    for prototypes in (nowhere, moved(nowhere, torch.ones(K, 3, dtype=torch.float64), ~met, 0.9)):
        loss = alignment(means, met, prototypes, 0.1)
        assert loss.item() == 0.0
        [gradient] = torch.autograd.grad(loss, means)
        assert torch.equal(gradient, torch.zeros_like(gradient))
    one = moved(nowhere, torch.eye(K, 3, dtype=torch.float64), met, 0.9)
    assert one.isinf().all(dim=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", ["weight", "distil"])
def test_the_students_losses_grow_with_their_weights(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], name: str
) -> None:
    gradients = {}
    for value in (0.0, 1.0, 3.0):
        method = ProKD(**{"weight": 0.5, "distil": 0.5, name: value})
        view = make_view(method)
        _student(method, view)
        parts = torch.autograd.grad(method.loss(*make_batches(view)), list(method.model.parameters()))
        gradients[value] = torch.cat([part.flatten() for part in parts])
    own = gradients[1.0] - gradients[0.0]
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * own, rtol=0, atol=1e-12)


def test_the_alignment_has_a_gradient(make_view: Callable[..., Any], make_batches: Callable[..., Any]) -> None:
    gradients = []
    for align in (1.0, 4.0):
        method = ProKD(align=align)
        view = make_view(method)
        parts = torch.autograd.grad(method.loss(*make_batches(view)), list(method.model[0].parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert (gradients[1] - gradients[0]).abs().max() > 1e-3


def test_all_weights_zero_are_supervised_bit_by_bit(adapt: Callable[..., Any]) -> None:
    baseline, zero = adapt(Supervised()), adapt(ProKD(align=0.0, distil=0.0, weight=0.0))
    assert zero.at == baseline.at
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.counts == dataclasses.replace(baseline.counts, seconds=zero.counts.seconds)
    runs = [
        adapt(ProKD(**changes)).logits[-1]
        for changes in ({}, {"weight": 0.0}, {"distil": 0.0}, {"align": 0.0}, {"student": "teacher"})
    ]
    assert len({run.tobytes() for run in [*runs, baseline.logits[-1]]}) == 6


@pytest.mark.parametrize("stop_after", [4, 15, 17, 22])
def test_a_resumed_run_equals_an_uninterrupted_one(adapt: Callable[..., Any], stop_after: int) -> None:
    """Killed in the teacher's training, and early and late in the student's."""
    whole = adapt(ProKD())
    killed = adapt(ProKD(), checkpoints=0, stop_after=stop_after)
    resumed = adapt(ProKD())
    assert 0 < killed.counts.passes < whole.counts.passes
    assert (killed.method.round == 1) == (stop_after > 15)
    for mine, theirs in zip(killed.logits + resumed.logits, whole.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert torch.equal(whole.method.target, resumed.method.target)
    assert whole.counts == dataclasses.replace(resumed.counts, seconds=whole.counts.seconds)


@pytest.mark.parametrize("align", [0.0, 1.0])
def test_counted_passes(adapt: Callable[..., Any], align: float) -> None:
    """A teacher of 4 steps, the pool of 68 twice, a student of 3 steps."""
    teacher = 4 * 3 * BATCH * (3 if align else 1)
    limit = teacher + 2 * 68 + 3 * 4 * 2 * BATCH
    method = ProKD(align=align, ratio=2, teacher=(teacher - 1) / limit)
    assert adapt(method, limit=limit).counts.passes == limit


def test_models_whose_last_layer_reads_all_tokens_are_refused(
    make_view: Callable[..., Any], make_batches: Callable[..., Any], words: Any
) -> None:
    method = ProKD()
    view = make_view(method, words)
    method.model.alone = False
    with pytest.raises(UsageError, match=r"prokd: the last linear layer of Words reads 24 rows, of .* that have a cl"):
        method.loss(*make_batches(view))
