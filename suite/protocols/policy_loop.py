"""The loop of the protocol `policy`: runs in the method's process; answers it was not given are with the scorer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..bundle import Array
from ..errors import BudgetExhausted
from ..meter import Meter
from ..seeds import derive
from .context import Context
from .policy import PolicyTask
from .policy_method import PolicyMethod
from .policy_model import Policy
from .policy_view import PolicyView
from .texts import pack
from .vllm_sampler import make_sampler


@dataclass(frozen=True)
class FirstPolicy:
    """What a run begins with: the weights that are trained, and the responses that its evaluation is of."""

    weights: Mapping[str, Tensor]
    responses: Mapping[str, Array]


def run_policy(
    method: PolicyMethod,
    task: PolicyTask,
    public: Mapping[str, Array],
    weights: Mapping[str, Tensor],
    plan: Mapping[str, Array],
    meter: Meter,
    context: Context,
    first: FirstPolicy | None = None,
) -> None:
    """Let `method` improve the policy round by round; every round's policy is evaluated, the first one as round 0.

    A method that answers in a way of its own (`respond`) does so from round 0 on: its accuracy there is that of the
    first policy with the method's inference, `plain_accuracy` that of the first policy alone, which is what a method
    without such a way has as its round 0. What a method shows beside a prompt (`asked`) begins with round 1.

    `first` is the first policy where it was made before, for all methods; otherwise it is made here. A checkpoint is
    left after every round. When the budget ends within a round, that round does not count.
    """
    view = PolicyView(task, public, plan, meter, context)
    test = task.prompts(public, plan["test"])
    cloze, probes = task.measures().questions(public, plan["test"])
    told = [*view.demonstrations, *view.answers, *view.solutions, *view.references]
    meter.counts.labels += len(told)
    model = task.policy(weights, context.spec.precision).to(context.device)
    sampler = make_sampler(model, task, context.spec, context.device)
    policy = Policy(model, task, meter, context, view.prompts, method.lr_scale, sampler=sampler)
    policy.place("test", test)
    if not view._interpreter.has_code:
        # What code prints is its answer, and to run it takes time.
        policy.read_with(task.answer)
    number = 0
    # A resumed run does so again, for `setup` may look at it.
    if first is not None:
        policy.start_from(first.weights)
    elif task.first_epochs:
        policy.prepare(view.demonstrations, task.first_epochs)
    torch.manual_seed(derive(context.spec.seed, "method"))

    own = cloze is None and type(method).respond is not PolicyMethod.respond
    shows = type(method).asked is not PolicyMethod.asked

    def evaluate() -> None:
        known = dict(first.responses) if first is not None and not number else None
        prompts, options = policy.evaluation.asks(method.asked, test, cloze) if shows and number else (test, cloze)
        # Of the round; the evaluation may read more of them.
        fields: dict[str, Any] = {
            "own_parsed": policy.own,
            "feedback_parsed": view.feedback_read,
            "judgement_parsed": view.judgements_read,
        }
        responses = known or policy.evaluation.responses(prompts, number, options, probes)
        if own:
            asked = view._interpreter.asked
            respond = functools.partial(method.respond, policy)
            made, fields["answer_tokens"] = policy.evaluation.answers(respond, prompts, number)
            if view._interpreter.has_code:
                fields["answer_code_runs"] = view._interpreter.asked - asked
            view._interpreter.asked = asked
            responses |= {"plain": responses["greedy"], "greedy": pack(made)}
        if view._interpreter.has_code:
            fields["code_runs"] = view._interpreter.asked
        context.wire.send("round", responses, index=number, tokens=meter.counts.tokens, **fields)

    try:
        with meter.running():
            method.setup(policy, view)
        saved = context.load_checkpoint()
        if saved is not None:
            checkpoint.restore(method, saved["method"])
            policy.restore(saved["policy"])
            meter.restore(saved["meter"])
            view.generator.set_state(saved["generator"].cpu())
            view._interpreter.asked = int(saved["code_runs"])
            view.probed = bool(saved["probed"])
            number = int(saved["round"])
        else:
            evaluate()
        while number < task.rounds:
            policy.begin(number + 1)
            view.feedback_read = view.judgements_read = (0, 0)
            with meter.running():
                method.round(policy, view, number + 1)
            number += 1
            evaluate()
            context.progress(number / task.rounds)
            if number < task.rounds:
                state = {
                    "method": checkpoint.capture(method),
                    "policy": policy.state(),
                    "meter": meter.state(),
                    "generator": view.generator.get_state(),
                    "code_runs": view._interpreter.asked,
                    "probed": view.probed,
                    "round": number,
                }
                context.save_checkpoint(state, step=number + 1)
    except BudgetExhausted:
        return
