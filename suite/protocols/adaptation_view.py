"""What an adaptation method is shown, and the training loop that it calls; evaluations go to the scorer from here."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint
from ..bundle import Array
from ..errors import MethodError
from ..meter import Meter
from ..needs import TRANSDUCTIVE
from ..seeds import derive, rng
from .adaptation import EVALUATED, AdaptationTask, Augmentation, Batch, LabeledBatch, pool_sample
from .context import Context, autocast
from .label_free import label_free_scores, outputs_with_features
from .optimisation import make_optimizer
from .pool import LazyPool


class Trained(Protocol):
    """What the training loop asks of a method; `AdaptationMethod` says what each of it is."""

    lr_scale: float
    model: nn.Module

    def unlabeled_ratio(self) -> int: ...

    def domains_per_batch(self) -> int: ...

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]: ...

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor: ...

    def after_step(self) -> None: ...

    def predictor(self) -> nn.Module | None: ...


class View:
    """All that a method is shown: its labelled examples, the unlabelled pool, and counted validation scores.

    `labeled` (L, ...) with `labels` (L,), `unlabeled` (U, ...): preprocessed tensors on the run's device, or pools that
    make them when indexed, where the task's examples do not fit into memory (`LazyPool`: index, slice, `len`, `split`);
    `labeled_domains` (L,) and `unlabeled_domains` (U,) are empty unless the method has declared the need `domains`.
    `unlabeled_labels` (U,) are empty unless it is an upper bound that has declared `oracle-labels`.
    `test_inputs` (T, ...) are empty unless the method has declared `test-inputs`; their labels never come here.
    `generator` is the method's own random stream; `progress` the used share of the budget.
    """

    def __init__(
        self,
        method: Trained,
        task: AdaptationTask,
        public: Mapping[str, Array],
        plan: Mapping[str, Array],
        meter: Meter,
        context: Context,
        needs: Collection[str] = (),
    ) -> None:
        self.method = method
        self.task = task
        self.meter = meter
        self.context = context
        self.device = context.device
        self.n_classes = task.n_classes
        self.recipe = task.recipe
        self.seed = context.spec.seed
        self.labeled = _examples(task, public, plan["labeled"], self.device)
        self.labels = torch.from_numpy(np.array(plan["labels"])).to(self.device)
        self.unlabeled = _examples(task, public, plan["unlabeled"], self.device)
        self._strong_inputs = {}
        if type(task).strong_inputs is not AdaptationTask.strong_inputs:
            for name in ("labeled", "unlabeled"):
                self._strong_inputs[name] = _examples(task, public, plan[name], self.device, task.strong_inputs)
        self.labeled_domains, self.unlabeled_domains = (
            torch.from_numpy(np.array(plan[name][: None if "domains" in needs else 0])).to(self.device)
            for name in ("labeled_domains", "unlabeled_domains")
        )
        self.unlabeled_labels = torch.from_numpy(np.array(plan.get("oracle", np.empty(0, np.int64)))).to(self.device)
        shown = plan["test"][: None if TRANSDUCTIVE in needs else 0]
        self.test_inputs = _examples(task, public, shown, self.device)
        host = torch.device("cpu")
        self._evaluated = {name: _examples(task, public, plan[name], host) for name in EVALUATED}
        self.generator = torch.Generator(self.device).manual_seed(derive(self.seed, "method", "generator"))
        self._averaged: nn.Module | None = None
        self._point = 0
        self._step_number = 0
        self._resumed: dict[str, Any] | None = None

    @property
    def progress(self) -> float:
        """Used share of the budget, in [0, 1]."""
        return self.meter.progress

    def new_model(self, *names: str | int) -> nn.Module:
        """A freshly initialised, metered model on the run's device; calls with equal `names` give equal weights.

        The model that `setup` gets has no names; a second network takes some, to begin elsewhere.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "initialisation", *names))
            model = self.task.model()
        return self.meter.attach(model.to(self.device))

    def validate(self) -> float:
        """The validation score of the current predictor: counted, and its labels are counted once."""
        self.meter.counts.validation_calls += 1
        self.context.wire.send("validate", {"logits": self._predict(self._evaluated["validation"])})
        reply = self.context.wire.receive()
        if reply is None or reply.kind != "score":
            raise MethodError("the scorer has gone")
        if self.meter.counts.validation_calls == 1:
            self.meter.counts.labels += len(self._evaluated["validation"])
        return float(reply.fields["value"])

    def evaluate(self) -> None:
        """Send the current predictor's predictions to the scorer as one point of the curve; off the meter."""
        arrays = {name: self._predict(inputs) for name, inputs in self._evaluated.items() if len(inputs)}
        of_pool, fields = self._on_pool()
        self.context.wire.send("point", arrays | of_pool, x=self.meter.used, index=self._point, label_free=fields)
        self._point += 1

    def _on_pool(self) -> tuple[dict[str, Array], dict[str, float]]:
        """What the current predictor says of `pool_sample`: its logits, and scores that need no label. Off the meter.

        Nothing where there is no pool, or outputs are no logits (B, K) of classes.
        """
        if not len(self.unlabeled) or not self.task.label_free:
            return {}, {}
        inputs = self.unlabeled[torch.from_numpy(pool_sample(self.seed, len(self.unlabeled))).to(self.device)]
        with self._evaluating() as model:
            logits, features = outputs_with_features(model, inputs, self.task.evaluation_batch)
            if logits.dim() != 2:
                return {}, {}
            scores = label_free_scores(model, logits, features, rng(self.seed, "label-free", "scores"))
        return {"pool": logits.cpu().numpy()}, scores

    def resume(self) -> None:
        """Put a killed run's method back to where its last checkpoint was; the loop does, before `fit`."""
        self._resumed = self.context.load_checkpoint()
        if self._resumed is not None:
            checkpoint.restore(self.method, self._resumed["method"])
            self.meter.restore(self._resumed["meter"])
            self.generator.set_state(self._resumed["generator"].cpu())
            self._step_number, self._point = int(self._resumed["step"]), int(self._resumed["point"])

    def train(self, method: Trained, until: float = 1.0) -> None:
        """The harness's training loop over `method.loss`, with a new optimiser and a learning rate that falls anew.

        Returns when the share `until` of the budget is used; the budget's end ends `fit` with `BudgetExhausted`.
        """
        recipe, meter = self.recipe, self.meter
        groups = [(list(parameters), recipe.lr * method.lr_scale * scale) for parameters, scale in
                  method.parameter_groups()]  # fmt: skip
        optimizer = make_optimizer(recipe, [{"params": parameters, "lr": lr} for parameters, lr in groups])
        self._averaged = copy.deepcopy(method.model).requires_grad_(False) if recipe.ema else None
        # The first training's schedule counts what was used before it, such as passes from a cache.
        begin, first = (meter.progress if self._step_number else 0.0), self._step_number
        state, self._resumed = self._resumed, None
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            if self._averaged is not None:
                self._averaged.load_state_dict(state["averaged"])
            begin, first = float(state["begin"]), int(state["first"])
        average = _Average(self._averaged, method.model) if self._averaged is not None else None
        while meter.progress < until or until >= 1.0:
            share = (meter.progress - begin) / (until - begin)
            for group, (_, lr) in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = lr * recipe.schedule(share)
            with meter.running(), autocast(self.context):
                self._step(method, optimizer, self._step_number)
            self._step_number += 1
            if average is not None:
                step = self._step_number - first
                average.follow(min(recipe.ema, (1 + step) / (10 + step)))
            if self._point < recipe.points - 1 and meter.progress >= (self._point + 1) / recipe.points:
                self.evaluate()
            self.context.progress(meter.progress)
            if self.context.checkpoint_due():
                self._save(method, optimizer, begin, first)

    def _step(self, method: Trained, optimizer: torch.optim.Optimizer, step: int) -> None:
        size, domains = self.recipe.batch_size, method.domains_per_batch()
        labeled = self._labeled_batch(step, size, domains)
        unlabeled = self._unlabeled_batch(step, size * method.unlabeled_ratio() if len(self.unlabeled) else 0, domains)
        method.model.train()
        loss = method.loss(labeled, unlabeled)
        if not isinstance(loss, Tensor) or loss.dim():
            got = f"the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise MethodError(f"method '{self.meter.owner}': loss must return a scalar tensor, got {got}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.max_norm:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.recipe.max_norm)
        optimizer.step()
        method.after_step()

    def _labeled_batch(self, step: int, size: int, domains: int) -> LabeledBatch:
        chosen = self._chosen(len(self.labeled), self.labeled_domains, step, size, domains, "labeled")
        return LabeledBatch(
            self.labeled[chosen],
            self.labels[chosen],
            self.task.weak,
            self._strong(chosen, "labeled"),
            self._generators(step, "labeled"),
            chosen,
            self.labeled_domains[chosen] if len(self.labeled_domains) else None,
        )

    def _unlabeled_batch(self, step: int, size: int, domains: int) -> Batch:
        chosen = self._chosen(len(self.unlabeled), self.unlabeled_domains, step, size, domains, "unlabeled")
        return Batch(
            self.unlabeled[chosen],
            self.task.weak,
            self._strong(chosen, "unlabeled"),
            self._generators(step, "unlabeled"),
            chosen,
            self.unlabeled_domains[chosen] if len(self.unlabeled_domains) else None,
        )

    def _strong(self, chosen: Tensor, name: str) -> Augmentation:
        """The strong view of the examples `chosen`: of their inputs, or of what the task has made beforehand."""
        if name not in self._strong_inputs:
            return self.task.strong
        return lambda _, generator: self.task.strong(self._strong_inputs[name][chosen], generator)

    def _chosen(self, n: int, of: Tensor, step: int, size: int, domains: int, name: str) -> Tensor:
        if domains and len(of):
            return self._draw_by_domain(of, step, size, domains, name)
        return self._draw(n, step, size, name)

    def _draw_by_domain(self, of: Tensor, step: int, size: int, domains: int, name: str) -> Tensor:
        """Indices of batch `step`: equal shares of `domains` domains, drawn alike; a pure function of seed and step."""
        kept = self.__dict__.setdefault("_members", {})
        if name not in kept:
            known = of.cpu().numpy()
            kept[name] = [np.flatnonzero(known == value) for value in np.unique(known)]
        members, draw = kept[name], rng(self.seed, "domains", name, step)
        met = draw.permutation(len(members))[: min(domains, len(members))]
        shares = [len(part) for part in np.array_split(np.empty(size), len(met))]
        parts = [
            draw.choice(members[domain], share, replace=share > len(members[domain]))
            for domain, share in zip(met, shares, strict=True)
        ]
        return torch.from_numpy(np.concatenate(parts)).to(self.device)

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

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[nn.Module]:
        """The current predictor in eval mode; off the meter, random states untouched."""
        model = self.method.predictor() or self._averaged or self.method.model
        was_training = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with self.meter.paused(), torch.no_grad(), autocast(self.context):
                yield model
        finally:
            for module, training in was_training.items():
                module.training = training

    def _predict(self, inputs: Tensor | LazyPool) -> Array:
        """What is sealed of the current predictor's outputs, logits (N, K) in most tasks."""
        parts, size = [], self.task.evaluation_batch
        with self._evaluating() as model:
            for start in range(0, len(inputs), size):
                batch = inputs[start : start + size].to(self.device)
                parts.append(self.task.sealed(model(batch), len(batch), self.meter.owner).cpu())
        return torch.cat(parts).numpy() if parts else np.empty((0, self.n_classes), np.float32)

    def _save(self, method: Trained, optimizer: torch.optim.Optimizer, begin: float, first: int) -> None:
        self.context.save_checkpoint(
            {
                "method": checkpoint.capture(method, skip=("view",)),
                "optimizer": optimizer.state_dict(),
                "averaged": self._averaged.state_dict() if self._averaged is not None else None,
                "meter": self.meter.state(),
                "generator": self.generator.get_state(),
                "step": self._step_number,
                "point": self._point,
                "begin": begin,
                "first": first,
            },
            step=self._point,
        )


def _examples(
    task: AdaptationTask,
    public: Mapping[str, Array],
    indices: Array,
    device: torch.device,
    inputs: Callable[[Mapping[str, Array], Array], Tensor] | None = None,
) -> Tensor | LazyPool:
    """The examples at `indices` as `task.inputs`, or the given `inputs`, makes them."""
    make = functools.partial(inputs or task.inputs, public)
    if task.lazy:
        return LazyPool(make, indices, device, task.evaluation_batch)
    return make(indices).to(device)


class _Average:
    """Averaged weights of a model. The tensors are looked up once: walking a small model is a twentieth of a step."""

    def __init__(self, averaged: nn.Module, model: nn.Module) -> None:
        self._averaged: list[Tensor] = [*averaged.parameters()]
        self._weights: list[Tensor] = [*model.parameters()]
        pairs = list(zip(averaged.buffers(), model.buffers(), strict=True))
        kinds = dict.fromkeys(mine.dtype for mine, _ in pairs)
        self._buffers = [tuple(zip(*(pair for pair in pairs if pair[0].dtype == kind), strict=True)) for kind in kinds]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """averaged <- decay * averaged + (1 - decay) * model for weights; buffers are taken over."""
        torch._foreach_lerp_(self._averaged, self._weights, 1.0 - decay)
        for mine, theirs in self._buffers:
            torch._foreach_copy_(mine, theirs)
