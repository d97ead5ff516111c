"""Worked feedback and refinements: which flaws there are, what is said of them, and what is learned from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from selfbench.methods.common.critique import (
    Critique,
    completed,
    demonstrated_critiques,
    feedback_examples,
    refinement_examples,
)
from selfbench.suite.protocols.policy_examples import Example


class Finisher:
    """Goes on by a table, one step a time."""

    def __init__(self, after: dict[str, str]) -> None:
        self.after = after
        self.asked: list[list[str]] = []

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        self.asked.append(list(begun))
        return [[self.after[text]] if text in self.after else [] for text in begun]


class View:
    demonstrations = (Example("a?", "1.2.3"), Example("b?", "1.5.6"))

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def steps(text: str) -> list[str]:
        head = text.split(".")
        return [part + "." for part in head[:-1]] + [head[-1]]

    @staticmethod
    def feedback(right: Sequence[bool]) -> str:
        return "".join("nj"[good] for good in right)

    critic = staticmethod(lambda prompt, text: f"{prompt}{text} says")
    again = staticmethod(lambda prompt, text, feedback: f"{prompt}{text} {feedback} then")


def test_responses_are_completed_each_by_its_own_steps() -> None:
    policy = Finisher({"x…": "xy…", "xy…": "xyz", "…": "q", "u…": "uv…"})
    found = completed(policy, ["1", "2", "3", "4"], ["x…", "whole", "…", "u…"], 0.7)
    # The last one has no room after its first step.
    assert found == ["xyz", "whole", "q", "uv…"]
    assert policy.asked == [["x…", "…", "u…"], ["xy…", "uv…"]]


def test_flaws_are_steps_of_other_demonstrations_and_feedback_names_them() -> None:
    after = {"1.5.…": "1.5.3", "1.2.…": "1.2.9", "1.5.6": "", "1.2.6": "", "1.5.3": ""}
    found = {critique for seed in range(30) for critique in demonstrated_critiques(Finisher(after), View(seed), 0.7)}
    assert found == {
        Critique("a?", "1.2.3", "jjj", "1.2.3"),
        Critique("b?", "1.5.6", "jjj", "1.5.6"),
        # The second step of the other one, then the policy goes on; or the last step, and nothing is left to do.
        Critique("a?", "1.5.3", "jnj", "1.2.3"),
        Critique("a?", "1.2.6", "jjn", "1.2.3"),
        Critique("b?", "1.2.9", "jnn", "1.5.6"),
        Critique("b?", "1.5.3", "jjn", "1.5.6"),
    }
    # What cannot be completed is left out.
    short = {critique for seed in range(30) for critique in demonstrated_critiques(Finisher({}), View(seed), 0.7)}
    assert {critique.response for critique in short} == {"1.2.3", "1.5.6", "1.2.6", "1.5.3"}


def test_a_response_of_another_length_is_compared_step_by_step() -> None:
    after = {"1.5.…": "1.5.3.4", "1.2.…": "1.2"}
    found = {c.response: c.feedback for s in range(30) for c in demonstrated_critiques(Finisher(after), View(s), 0.7)}
    assert found["1.5.3.4"] == "jnnn"


@pytest.mark.parametrize("text", ["1.2.3", "1.5.3"])
def test_critics_learn_feedback_and_actors_refinements(text: str) -> None:
    one = Critique("a?", text, "jnj", "1.2.3")
    assert feedback_examples(View(), [one]) == [(f"a?{text} says", "jnj")]
    assert refinement_examples(View(), [one]) == [(f"a?{text} jnj then", "1.2.3")]
