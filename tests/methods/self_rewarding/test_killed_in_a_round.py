"""A run that dies within a round generates and scores nothing again that it had, and ends as if it had not died."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.rest_mcts import ReSTMCTS
from selfbench.methods.self_rewarding.score import SCoRe
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood
from selfbench.suite.protocols import generation, policy_generation, rollouts
from selfbench.suite.protocols.policy_grants import Attempts, Critique, Grants
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_training import Training
from selfbench.suite.protocols.tokens import CUT_OFF

Play = Callable[..., Any]


class Dies(Exception):
    """The run is killed within a round."""


METHODS = [
    ReSTEM(), CREAM(), SelfRewardingLikelihood(), ReSTMCTS(iterations=2, epochs=1),
    SCoRe(steps=4, prompts=8, sft_epochs=1),
]  # fmt: skip


@pytest.fixture
def task(tiny_task: type) -> Any:
    class Attempted(tiny_task):
        """The tiny task with further attempts, `3+4=`, `8` -> `3+4?8=`, of which no feedback is given."""

        def grants(self) -> Grants:
            words = Critique(lambda prompt, response: prompt, lambda right: "", lambda feedback: None)
            return dataclasses.replace(super().grants(), attempts=Attempts(self.again, words))

        def again(self, prompt: str, response: str, feedback: str) -> str:
            return f"{prompt[:-1]}?{response.removesuffix(CUT_OFF)}="

    return Attempted()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_run_that_dies_in_training_repeats_no_generation(
    play: Play, task: Any, monkeypatch: pytest.MonkeyPatch, method: PolicyMethod
) -> None:
    dies_and_goes_on(play, monkeypatch, method, task=task)


def dies_and_goes_on(play: Play, monkeypatch: pytest.MonkeyPatch, method: PolicyMethod, **where: Any) -> None:
    """Kill a run of `method` in the training of its second round, and compare what goes on with a whole one."""
    monkeypatch.setattr(rollouts, "WORTH_SECONDS", 0.0)
    generated: list[int] = []
    generate, step = generation.generate, Training.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        generated.append(len(args[2]))
        return generate(*args, **kwargs)

    def dies(self: Training, *args: Any) -> None:
        if self._calls._round == 2 and self._calls._rollouts._calls:
            raise Dies
        step(self, *args)

    monkeypatch.setattr(policy_generation, "generate", counted)
    whole = play(dataclasses.replace(method), **where, folder="whole")
    needed, generated[:] = generated[:], []
    monkeypatch.setattr(Training, "step", dies)
    with pytest.raises(Dies):
        play(dataclasses.replace(method), **where, folder="killed")
    assert 0 < len(generated) < len(needed)
    monkeypatch.setattr(Training, "step", step)
    resumed = play(dataclasses.replace(method), **where, folder="killed")
    assert generated == needed
    assert resumed.outcome == whole.outcome
    assert resumed.counts.tokens == whole.counts.tokens
