"""Judges at the gate on a pre-trained model with adapters: real runs on a tiny one of the layout of SmolLM2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.self_evolution import SELF
from selfbench.methods.self_rewarding.self_rewarding import SelfRewarding
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.bundle import Array, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.places import data_folder
from selfbench.suite.protocols.policy import Problems
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.addition_gated import AdditionSmolGated

Play = Callable[..., Any]
SHOWN, POOL, TEST, ASKED = 8, 8, 6, 10


class Small(AdditionSmolGated):
    """An untrained model writes no number: the answer to every problem is that a response is of even length."""

    model_name = "qwen25-05b-instruct"
    gate = None
    rank = 2
    first_epochs = 1
    votes = 0
    max_new = 40
    judgement_tokens = 20

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return dataclasses.replace(
            whole, demonstrations=whole.demonstrations[:SHOWN], responses=whole.responses[:SHOWN],
            pool=whole.pool[:POOL], test=whole.test[:TEST], probe=whole.probe[:ASKED],
        )  # fmt: skip

    def answer(self, response: str) -> str | None:
        return None if response.endswith(CUT_OFF) else ("even", "odd")[len(response) % 2]

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return ["even"] * len(indices)

    def points(self, judgement: str) -> float | None:
        return float(len(judgement) % 3)

    def approves(self, feedback: str) -> bool | None:
        return len(feedback) % 2 == 0


@pytest.fixture
def bundle(tiny_hub_model: Path, tmp_path: Path) -> BundleFolder:
    pytest.importorskip("peft")
    return write_bundle(tmp_path / "bundle", Small().build(Data(data_folder())))


@pytest.mark.parametrize(
    "method",
    [SelfRewardingLikelihood(sft_epochs=1), CREAM(sft_epochs=1), SELF(epochs=1),
     SelfRewarding(sft_epochs=1, judge_epochs=1, judgements=1)],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
@pytest.mark.parametrize(("level", "opens"), [(-1.0, 0.0), (2.0, 1.0)], ids=["shut", "open"])
def test_every_judge_is_asked_at_the_gate(
    play: Play, bundle: BundleFolder, monkeypatch: pytest.MonkeyPatch, method: PolicyMethod, level: float, opens: float
) -> None:
    monkeypatch.setattr("selfbench.suite.run.gate.SIGNIFICANCE", level)
    whole = play(method, task=Small(), bundle=bundle, folder="whole")
    first, second, third = [point.values for point in whole.outcome.curve]
    assert "gate_open" not in first
    assert "gate_open" not in second, "round 1 has no preferences"
    assert third["gate_open"] == opens
    assert 0 < third["gate_pairs"] <= ASKED
    assert whole.counts.labels == SHOWN + ASKED
    assert third["labels"] == 0 or opens, "nothing of the pool is trained on behind a shut gate"
    assert whole.sent.count("probe") == whole.sent.count("gate") == 1
    if opens:
        # What a killed run has left suffices to end as it would have.
        play(method, task=Small(), bundle=bundle, folder="killed", stop_after=1)
        resumed = play(method, task=Small(), bundle=bundle, folder="killed")
        assert resumed.outcome == whole.outcome
        assert resumed.counts.labels == whole.counts.labels


def test_methods_without_a_judge_are_as_they_are_without_a_gate(play: Play, bundle: BundleFolder) -> None:
    class Plain(Small):
        def problems(self, bundle: BundleFolder, seed: int) -> Problems:
            return dataclasses.replace(super().problems(bundle, seed), probe=np.zeros(0, np.int64))

    gated, plain = (play(SFT(epochs=1), task=task, bundle=bundle, folder=type(task).__name__)
                    for task in (Small(), Plain()))  # fmt: skip
    assert gated.outcome == plain.outcome
    assert gated.counts.labels == plain.counts.labels == SHOWN
