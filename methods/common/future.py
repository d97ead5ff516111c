"""Virtual steps of a student, and the loss of FST (arXiv:2209.06993): what its deep and its wide form share."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ...suite.protocols.optimisation import make_optimizer
from .norm import frozen_running_statistics

if TYPE_CHECKING:
    from ...suite.protocols.adaptation import Recipe
    from ...suite.protocols.adaptation_view import View


def teacher_of(model: nn.Module) -> nn.Module:
    """A copy of `model` that gets no gradient, in training mode but for dropout, which is off."""
    teacher = copy.deepcopy(model).requires_grad_(False).train()
    for layer in teacher.modules():
        if isinstance(layer, _DropoutNd):
            layer.eval()
    return teacher


def virtual_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """An optimiser of the recipe's kind over the trained weights of `model`; its learning rate is set at each step."""
    return make_optimizer(recipe, [parameter for parameter in model.parameters() if parameter.requires_grad])


def learning_rate(view: View, scale: float) -> float:
    """The learning rate of the step that is about to be taken, for a method that trains once over the whole budget."""
    return view.recipe.lr * scale * view.recipe.schedule(view.progress)


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[list[Tensor]]:
    """Gives copies of the parameters of `model`; on leaving they are as they were, whatever happened inside."""
    parameters: list[Tensor] = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with frozen_running_statistics(model):
            yield before
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


def virtual_step(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """One step of `optimizer` down the gradient of `loss`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def future_loss(
    student: nn.Module, teacher: nn.Module, labeled: tuple[Tensor, Tensor], weak: Tensor, strong: Tensor,
    threshold: float, weight: float,
) -> Tensor:  # fmt: skip
    """CE(f(x), y) + weight w (1/B) sum_b CE(f(strong_b), argmax g(weak_b)): a scalar.

    `labeled` are x (L, ...) and y (L,), f is `student`, g `teacher`; w is the share of the B examples of which the
    teacher is surer than `threshold`, so that the unsure ones are learnt from too. The student sees one batch.
    """
    with torch.no_grad():
        confidence, labels = teacher(weak).softmax(dim=1).max(dim=1)
        share = (confidence >= threshold).to(confidence.dtype).mean()
    x, y = labeled
    logits: Tensor = student(torch.cat([x, strong]))
    of_labeled, of_strong = torch.split(logits, [len(x), len(strong)])
    loss: Tensor = F.cross_entropy(of_labeled, y) + weight * share * F.cross_entropy(of_strong, labels)
    return loss
