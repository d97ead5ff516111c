"""The loop of active learning: runs in the method's process; labels come over the line when they are bought."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from ..bundle import Array
from ..errors import MethodError
from ..meter import Meter
from .active import ActiveTask
from .adaptation_loop import charge_cached, predictor_expected, start
from .adaptation_method import AdaptationMethod
from .adaptation_view import View
from .context import Context, as_logits
from .features import forward_with_features
from .pool import LazyPool

MOVED = ("labeled", "labels", "unlabeled", "labeled_domains", "unlabeled_domains", "oracle")
"""The parts of a plan that change when labels are bought; `oracle` is in that of an upper bound alone."""


class RoundView(View):
    """The view of one round: of a run of `adaptation` that is evaluated at its end alone."""

    def __init__(
        self,
        method: AdaptationMethod,
        task: ActiveTask,
        public: Mapping[str, Array],
        plan: Mapping[str, Array],
        meter: Meter,
        context: Context,
        needs: Collection[str],
        number: int,
    ) -> None:
        super().__init__(method, task, public, plan, meter, context, needs)
        self.recipe = dataclasses.replace(self.recipe, points=1)
        self._point = number

    def _on_pool(self) -> tuple[dict[str, Array], dict[str, float]]:
        return {}, {}

    def ask(self, features: bool) -> tuple[Array, Array]:
        """Send the predictor's logits and features of the pool and of what is labelled; off the meter.

        Returns what was bought for it: places (N,) in the pool and the classes (N,) of the examples there.
        """
        pool, labeled = self._shown(self.unlabeled, features), self._shown(self.labeled, features)
        arrays = {"logits": pool[0], "features": pool[1], "labeled_logits": labeled[0], "labeled_features": labeled[1]}
        self.context.wire.send("query", arrays, round=self._point - 1)
        reply = self.context.wire.receive()
        if reply is None or reply.kind != "bought":
            raise MethodError("the scorer has gone")
        return np.array(reply.arrays["places"]), np.array(reply.arrays["labels"])

    def _shown(self, inputs: Tensor | LazyPool, features: bool) -> tuple[Array, Array]:
        logits, seen = [], []
        with self._evaluating() as model:
            for start in range(0, len(inputs), self.task.evaluation_batch):
                batch = inputs[start : start + self.task.evaluation_batch]
                raw, own = forward_with_features(model, batch) if features else (model(batch), None)
                logits.append(as_logits(raw, len(batch), self.n_classes, self.meter.owner, "the pool").cpu())
                if features and own is None:
                    raise MethodError(f"method '{self.meter.owner}': its predictor has no features for the query")
                seen.append(own.float().cpu() if own is not None else torch.empty(len(batch), 0))
        return torch.cat(logits).numpy(), torch.cat(seen).numpy()


def run_active(
    method: AdaptationMethod,
    task: ActiveTask,
    public: Mapping[str, Array],
    plan: Mapping[str, Array],
    meter: Meter,
    context: Context,
    needs: Collection[str] = (),
) -> None:
    """Fit a new copy of `method` in each round, send its last predictor's predictions, and buy labels in between.

    The passes of a frozen model are charged once; what they leave of the budget is divided equally among the rounds.
    An upper bound is told the classes of the whole pool at the start: these are counted then, and not when they are
    bought.
    """
    saved = context.load_checkpoint()
    first, since = 0, None
    if saved is None:
        meter.counts.labels += len(plan["labels"]) + len(plan.get("oracle", ()))
        with predictor_expected(method, meter):
            charge_cached(task, plan, meter)
    else:
        kept = saved["kept"]
        first, since = int(kept["round"]), float(kept["since"])
        plan = {**plan, **{name: tensor.cpu().numpy() for name, tensor in kept["plan"].items()}}
    frozen = task.cached_passes * (len(plan["labeled"]) + len(plan["unlabeled"]))
    spent = frozen if meter.budget.currency == "passes" else 0.0
    part = (meter.budget.limit - spent) / (task.rounds + 1)
    for number in range(first, task.rounds + 1):
        since = meter.allot(part, since)
        context.part = (number, task.rounds + 1)
        moved = {name: torch.from_numpy(np.array(plan[name])) for name in MOVED if name in plan}
        context.kept = {"round": number, "since": since, "plan": moved}
        fitted = dataclasses.replace(method)
        view = RoundView(fitted, task, public, plan, meter, context, needs, number)
        with predictor_expected(fitted, meter):
            start(fitted, view)
            if saved is not None:
                view.resume()
            fitted.fit(view)
        saved, since = None, None
        view.evaluate()
        if number < task.rounds:
            places, labels = view.ask(task.query_features)
            meter.counts.labels += len(labels) if "oracle" not in plan else 0
            plan = extended(plan, places, labels)


def extended(plan: Mapping[str, Array], places: Array, labels: Array) -> dict[str, Array]:
    """The plan of a run that has bought the classes `labels` (N,) of the examples at `places` (N,) of its pool."""
    pool, domains = plan["unlabeled"], plan["unlabeled_domains"]
    moved = {
        "labeled": np.concatenate([plan["labeled"], pool[places]]),
        "labels": np.concatenate([plan["labels"], labels]),
        "unlabeled": np.delete(pool, places),
    }
    if "oracle" in plan:
        moved["oracle"] = np.delete(plan["oracle"], places)
    if len(domains):
        moved["labeled_domains"] = np.concatenate([plan["labeled_domains"], domains[places]])
        moved["unlabeled_domains"] = np.delete(domains, places)
    return {**plan, **moved}
