"""The first policy of a run and its responses: equal for all methods of a task and seed, so made once for all."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..bundle import Array, BundleFolder
from ..meter import Meter
from ..spec import Budget, RunSpec
from ..wire import Wire
from .context import Context
from .policy import PolicyTask, Problems
from .policy_calls import UNLIMITED
from .policy_episodes import Reactions
from .policy_examples import Example
from .policy_grants import Environment
from .policy_loop import FirstPolicy
from .policy_model import Policy
from .vllm_sampler import make_sampler

if TYPE_CHECKING:
    from torch import Tensor


def make_first(
    task: PolicyTask,
    public: Mapping[str, Array],
    weights: Mapping[str, Tensor],
    problems: Problems,
    spec: RunSpec,
    device: torch.device,
    private: Mapping[str, Array] = {},
) -> FirstPolicy:
    """The first policy of the runs with the seed of `spec`; `private` arrays are for an environment to know."""
    line, other = socket.socketpair()
    with line, other:
        # Nobody listens: a first policy is trained on no problem of the pool, so there is nothing to tell.
        context = Context(spec, device, Wire(line), Path())
        meter = Meter(Budget(currency="tokens", limit=UNLIMITED), "first policy", device)
        model = task.policy(weights, spec.precision).to(device)
        environment = task.grants().environment
        react = _reactions(environment, environment.worlds(private, problems.test)) if environment else None
        sampler = make_sampler(model, task, spec, device)
        policy = Policy(model, task, meter, context, reactions=react, sampler=sampler)
        if task.first_epochs:
            shown = task.prompts(public, problems.demonstrations)
            examples = [Example(*pair) for pair in zip(shown, problems.responses, strict=True)]
            policy.prepare(examples, task.first_epochs)
        test = task.prompts(public, problems.test)
        policy.place("test", test)
        responses = policy.evaluation.responses(test, 0, *task.measures().questions(public, problems.test))
    return FirstPolicy(policy.state()["weights"], responses)


def _reactions(environment: Environment, worlds: Sequence[str]) -> Reactions:
    def react(part: str, numbers: Sequence[int], texts: Sequence[str]) -> list[tuple[str, bool]]:
        return [environment.react(worlds[at], text) for at, text in zip(numbers, texts, strict=True)]

    return react


def find_first(path: str | None) -> FirstPolicy | None:
    """The first policy in a folder that `make_first` has filled on a processor of this kind, None elsewhere."""
    folder = BundleFolder(Path(path or "."))
    if path is None or not folder.exists or folder.facts.get("cpu") != torch.backends.cpu.get_cpu_capability():
        return None
    return FirstPolicy(folder.model(), folder.public())
