"""A run that dies within a round generates and scores nothing again that it had, and ends as if it had not died."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.self_rewarding import SelfRewarding
from selfbench.suite.protocols import generation, policy_generation, rollouts
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_training import Training

Play = Callable[..., Any]


class Dies(Exception):
    """The run is killed within a round."""


@pytest.mark.parametrize("method", [ReSTEM(), CREAM(), SelfRewarding()], ids=lambda method: type(method).__name__)
def test_a_run_that_dies_in_training_repeats_no_generation(
    play: Play, monkeypatch: pytest.MonkeyPatch, method: PolicyMethod
) -> None:
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
    whole = play(method, folder="whole")
    needed, generated[:] = generated[:], []
    monkeypatch.setattr(Training, "step", dies)
    with pytest.raises(Dies):
        play(method, folder="killed")
    assert 0 < len(generated) < len(needed)
    monkeypatch.setattr(Training, "step", step)
    resumed = play(method, folder="killed")
    assert generated == needed
    assert resumed.outcome == whole.outcome
    assert resumed.counts.tokens == whole.counts.tokens
