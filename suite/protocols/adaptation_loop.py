"""The loop of the protocol `adaptation`: runs in the method's process; labels it was not given are with the scorer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping

import torch

from ..bundle import Array
from ..errors import BudgetExhausted, MethodError
from ..meter import Meter
from ..needs import TRANSDUCTIVE
from ..seeds import derive
from .adaptation import AdaptationTask
from .adaptation_method import AdaptationMethod
from .adaptation_view import View
from .context import Context


def run_adaptation(
    method: AdaptationMethod,
    task: AdaptationTask,
    public: Mapping[str, Array],
    plan: Mapping[str, Array],
    meter: Meter,
    context: Context,
    needs: Collection[str] = (),
) -> None:
    """Let `method` use its budget, then send its last predictor's predictions. `needs` is what it has declared."""
    view = View(method, task, public, plan, meter, context, needs)
    meter.counts.labels += len(view.labels) + len(view.unlabeled_labels)
    with predictor_expected(method, meter):
        charge_cached(task, plan, meter, needs)
        start(method, view)
        view.resume()
        method.fit(view)
    view.evaluate()


@contextlib.contextmanager
def predictor_expected(method: AdaptationMethod, meter: Meter) -> Iterator[None]:
    """Inside, the budget may end; raises `MethodError` where it does before the method has a model."""
    try:
        yield
    except BudgetExhausted:
        if not hasattr(method, "model"):
            raise MethodError(f"method '{meter.owner}' used up its budget before it had a predictor") from None


def charge_cached(task: AdaptationTask, plan: Mapping[str, Array], meter: Meter, needs: Collection[str] = ()) -> None:
    """Charge the passes of a frozen model that made the examples shown to the method."""
    if task.cached_passes:
        shown = ("labeled", "unlabeled", "test") if TRANSDUCTIVE in needs else ("labeled", "unlabeled")
        meter.charge(forward=task.cached_passes * sum(len(plan[name]) for name in shown))


def start(method: AdaptationMethod, view: View) -> None:
    """Set `method` up with a new model and the random state of a new run."""
    torch.manual_seed(derive(view.seed, "method"))
    with view.meter.running():
        method.setup(view.new_model(), view)
