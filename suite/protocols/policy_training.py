"""The training of a policy by its task's recipe: batches, optimiser, schedule, and what it is charged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array
from ..errors import MethodError
from ..seeds import rng
from .context import autocast
from .optimisation import Recipe, make_optimizer
from .policy_calls import Calls
from .policy_objectives import Objective
from .policy_weights import Weights


class Training:
    """Trainings of `model`, each with a new optimiser of the recipe; `lr` is the learning rate at their start."""

    def __init__(self, model: nn.Module, recipe: Recipe, weights: Weights, calls: Calls, lr: float) -> None:
        self._model, self._recipe, self._weights, self._calls = model, recipe, weights, calls
        self.lr = lr

    def train(self, objective: Objective, epochs: int, lr_scale: float, head: Sequence[nn.Parameter] = ()) -> float:
        """Passes over all items, in batches; returns the last batch's loss. Parameters of a `head` are trained along.

        Raises `MethodError` where the loss is no finite number, and where the policy may not change.
        """
        self._calls.refuse_while_answering()
        parameters = [*(value for _, value in self._weights.trained()), *head]
        optimizer = make_optimizer(self._recipe, parameters)
        draw = rng(self._calls.next_seed("train"))
        size = max(1, self._recipe.batch_size // objective.per_item)
        total, step = epochs * -(-len(objective.sequences) // size), 0
        value = torch.tensor(float("nan"))
        self._model.train()
        try:
            for _ in range(epochs):
                for chosen in objective.sequences.batches(size, draw):
                    value = self._loss(objective, chosen)
                    self.step(optimizer, parameters, value, (step + 0.5) / total, lr_scale)
                    step += 1
        finally:
            self._model.eval()
        return self._check(value)

    def follow(self, draw: Callable[[], Objective | None], steps: int, lr_scale: float) -> None:
        """`steps` steps, each on all items of what `draw` gives for it at once; it may give None, for no step.

        Raises as `train` does.
        """
        self._calls.refuse_while_answering()
        parameters = [value for _, value in self._weights.trained()]
        optimizer = make_optimizer(self._recipe, parameters)
        loss = torch.zeros(())
        for step in range(steps):
            objective = draw()
            if objective is None:
                continue
            self._model.train()
            try:
                loss = self._loss(objective, np.arange(len(objective.sequences)))
                self.step(optimizer, parameters, loss, (step + 0.5) / steps, lr_scale)
            finally:
                self._model.eval()
        self._check(loss)

    def _loss(self, objective: Objective, chosen: Array) -> Tensor:
        """The loss of the items `chosen`, charged before it is computed."""
        work = objective.passes * objective.per_item * len(chosen)
        self._calls.meter.charge(forward=work, backward=work, trained=int(objective.tokens[chosen].sum()))
        with autocast(self._calls.context):
            return objective.loss(chosen)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        loss: Tensor,
        share: float,
        lr_scale: float,
    ) -> None:
        """One step down the gradient of `loss`, at the share of a training that the schedule goes by."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr * lr_scale * self._recipe.schedule(share)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._recipe.max_norm:
            nn.utils.clip_grad_norm_(parameters, self._recipe.max_norm)
        optimizer.step()

    def _check(self, loss: Tensor) -> float:
        result = float(loss.detach())
        if not np.isfinite(result):
            raise MethodError(f"method '{self._calls.meter.owner}': the training loss is {result}")
        return result
