"""The loop of the protocol `adaptation`: runs in the method's process; labels it was not given are with the scorer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint
from ..bundle import Array
from ..errors import BudgetExhausted, MethodError
from ..meter import Meter
from ..seeds import derive, rng
from .adaptation import AdaptationMethod, AdaptationTask, Batch, LabeledBatch
from .context import Context, as_logits, autocast

_EVALUATION_BATCH = 1024


class View:
    """All that a method is shown: its labelled examples, the unlabelled pool, and counted validation scores.

    `labeled` (L, ...) with `labels` (L,), `unlabeled` (U, ...): preprocessed tensors on the run's device.
    `generator` is the method's own random stream; `progress` the used share of the budget.
    """

    def __init__(
        self,
        method: AdaptationMethod,
        task: AdaptationTask,
        public: Mapping[str, Array],
        plan: Mapping[str, Array],
        meter: Meter,
        context: Context,
    ) -> None:
        self.method = method
        self.task = task
        self.meter = meter
        self.context = context
        self.device = context.device
        self.n_classes = task.n_classes
        self.recipe = task.recipe
        self.seed = context.spec.seed
        self.labeled = task.inputs(public, plan["labeled"]).to(self.device)
        self.labels = torch.from_numpy(np.array(plan["labels"])).to(self.device)
        self.unlabeled = task.inputs(public, plan["unlabeled"]).to(self.device)
        self._validation = task.inputs(public, plan["validation"])
        self._test = task.inputs(public, plan["test"])
        self.generator = torch.Generator(self.device).manual_seed(derive(self.seed, "method", "generator"))
        self._averaged: nn.Module | None = None
        self._point = 0

    @property
    def progress(self) -> float:
        """Used share of the budget, in [0, 1]."""
        return self.meter.progress

    def new_model(self) -> nn.Module:
        """A freshly initialised, metered model on the run's device; every call gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "initialisation"))
            model = self.task.model()
        return self.meter.attach(model.to(self.device))

    def validate(self) -> float:
        """The validation score of the current predictor: counted, and its labels are counted once."""
        self.meter.counts.validation_calls += 1
        self.context.wire.send("validate", {"logits": self._predict(self._validation)})
        reply = self.context.wire.receive()
        if reply is None or reply.kind != "score":
            raise MethodError("the scorer has gone")
        if self.meter.counts.validation_calls == 1:
            self.meter.counts.labels += len(self._validation)
        return float(reply.fields["value"])

    def evaluate(self) -> None:
        """Send the current predictor's predictions to the scorer as one point of the curve; off the meter."""
        arrays = {"test": self._predict(self._test)}
        if len(self._validation):
            arrays["validation"] = self._predict(self._validation)
        self.context.wire.send("point", arrays, x=self.meter.used, index=self._point)
        self._point += 1

    def train(self, method: AdaptationMethod) -> None:
        """The harness's training loop over `method.loss`; returns when the budget is used up."""
        recipe, meter = self.recipe, self.meter
        trained = [item for item in method.model.parameters() if item.requires_grad]
        optimizer = _optimizer(recipe, trained, recipe.lr * method.lr_scale)
        self._averaged = copy.deepcopy(method.model).requires_grad_(False) if recipe.ema else None
        step = 0
        state = self.context.load_checkpoint()
        if state is not None:
            checkpoint.restore(method, state["method"])
            optimizer.load_state_dict(state["optimizer"])
            if self._averaged is not None:
                self._averaged.load_state_dict(state["averaged"])
            meter.restore(state["meter"])
            self.generator.set_state(state["generator"].cpu())
            step, self._point = int(state["step"]), int(state["point"])
        base_lr = recipe.lr * method.lr_scale
        try:
            while True:
                with meter.running(), autocast(self.context):
                    self._step(method, optimizer, trained, base_lr, step)
                step += 1
                if self._averaged is not None:
                    _follow(self._averaged, method.model, min(recipe.ema, (1 + step) / (10 + step)))
                if self._point < recipe.points - 1 and meter.progress >= (self._point + 1) / recipe.points:
                    self.evaluate()
                self.context.progress(meter.progress)
                if self.context.checkpoint_due():
                    self._save(method, optimizer, step)
        except BudgetExhausted:
            return

    def _step(
        self,
        method: AdaptationMethod,
        optimizer: torch.optim.Optimizer,
        trained: list[nn.Parameter],
        base_lr: float,
        step: int,
    ) -> None:
        ratio = method.unlabeled_ratio()
        labeled = self._labeled_batch(step)
        unlabeled = self._batch(
            self.unlabeled, step, self.recipe.batch_size * ratio if len(self.unlabeled) else 0, "unlabeled"
        )
        for group in optimizer.param_groups:
            group["lr"] = base_lr * math.cos(7.0 * math.pi / 16.0 * self.meter.progress)
        method.model.train()
        loss = method.loss(labeled, unlabeled)
        if not isinstance(loss, Tensor) or loss.dim():
            got = f"the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise MethodError(f"method '{self.meter.owner}': loss must return a scalar tensor, got {got}")
        for parameter in trained:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step()

    def _labeled_batch(self, step: int) -> LabeledBatch:
        chosen = self._draw(len(self.labeled), step, self.recipe.batch_size, "labeled")
        return LabeledBatch(
            self.labeled[chosen],
            self.labels[chosen],
            self.task.weak,
            self.task.strong,
            self._generators(step, "labeled"),
        )

    def _batch(self, pool: Tensor, step: int, size: int, name: str) -> Batch:
        chosen = self._draw(len(pool), step, size, name)
        return Batch(pool[chosen], self.task.weak, self.task.strong, self._generators(step, name))

    def _draw(self, n: int, step: int, size: int, name: str) -> Tensor:
        """Indices of batch `step` in a chain of permutations of the pool: a pure function of seed, name and step."""
        start, stop = step * size, (step + 1) * size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, n)
            order = self._permutation(n, epoch, name)
            part = order[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        if not parts:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permutation(self, n: int, epoch: int, name: str) -> Tensor:
        kept = self.__dict__.setdefault("_orders", {})
        if kept.get(name, (-1,))[0] != epoch:
            order = rng(self.seed, "order", name, epoch).permutation(n)
            kept[name] = (epoch, torch.from_numpy(order).to(self.device))
        return kept[name][1]  # type: ignore[no-any-return]

    def _generators(self, step: int, name: str) -> Any:
        def generator(view: str) -> torch.Generator:
            return torch.Generator(self.device).manual_seed(derive(self.seed, "augmentation", name, view, step))

        return generator

    def _predict(self, inputs: Tensor) -> Array:
        """Logits (N, K) of the current predictor in eval mode; off the meter, random states untouched."""
        model = self.method.predictor() or self._averaged or self.method.model
        was_training = {module: module.training for module in model.modules()}
        model.eval()
        parts = []
        with self.meter.paused(), torch.no_grad(), autocast(self.context):
            for start in range(0, len(inputs), _EVALUATION_BATCH):
                batch = inputs[start : start + _EVALUATION_BATCH].to(self.device)
                logits = as_logits(model(batch), len(batch), self.n_classes, self.meter.owner, "the evaluation set")
                parts.append(logits.cpu())
        for module, training in was_training.items():
            module.training = training
        return torch.cat(parts).numpy() if parts else np.empty((0, self.n_classes), np.float32)

    def _save(self, method: AdaptationMethod, optimizer: torch.optim.Optimizer, step: int) -> None:
        self.context.save_checkpoint(
            {
                "method": checkpoint.capture(method, skip=("view",)),
                "optimizer": optimizer.state_dict(),
                "averaged": self._averaged.state_dict() if self._averaged is not None else None,
                "meter": self.meter.state(),
                "generator": self.generator.get_state(),
                "step": step,
                "point": self._point,
            },
            step=self._point,
        )


def run_adaptation(
    method: AdaptationMethod,
    task: AdaptationTask,
    public: Mapping[str, Array],
    plan: Mapping[str, Array],
    meter: Meter,
    context: Context,
) -> None:
    """Let `method` use its budget, then send its last predictor's predictions."""
    view = View(method, task, public, plan, meter, context)
    meter.counts.labels += len(view.labels)
    torch.manual_seed(derive(context.spec.seed, "method"))
    try:
        if task.cached_passes:
            meter.charge(forward=task.cached_passes * (len(view.labeled) + len(view.unlabeled)))
        with meter.running():
            method.setup(view.new_model(), view)
        method.fit(view)
    except BudgetExhausted:
        if not hasattr(method, "model"):
            raise MethodError(f"method '{meter.owner}' used up its budget before it had a predictor") from None
    view.evaluate()


def _optimizer(recipe: Any, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0
        )
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=recipe.weight_decay)


def _follow(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """averaged <- decay * averaged + (1 - decay) * model for weights; buffers are taken over."""
    with torch.no_grad():
        torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1.0 - decay)
        for mine, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
