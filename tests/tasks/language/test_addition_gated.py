"""The additions whose judges pass a gate: its problems, its words, and who can run on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selfbench.suite import registry
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.needs import missing_needs
from selfbench.tasks.language.addition_gated import PROBED, AdditionSmolGated
from selfbench.tasks.language.addition_smol import AdditionSmol


def test_the_gate_has_problems_of_its_own_beside_those_of_addition_smol(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "sums", AdditionSmol().read(Data(tmp_path)))
    probes = []
    for seed in range(3):
        found, plain = (task.problems(folder, seed) for task in (AdditionSmolGated(), AdditionSmol()))
        for name in ("demonstrations", "pool", "test"):
            assert np.array_equal(getattr(found, name), getattr(plain, name))
        assert found.responses == plain.responses
        assert len(found.probe) == len(set(found.probe.tolist())) == PROBED
        assert len(plain.probe) == 0
        probes.append(found.probe.tolist())
    assert probes[0] != probes[1] != probes[2]


def test_feedback_and_further_attempts_are_turns_of_the_chat(tiny_hub_model: Path) -> None:
    class Words(AdditionSmolGated):
        model_name = "qwen25-05b-instruct"

    task = Words()
    user, assistant, end = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
    prompt = f"<|im_start|>system\nAnswer with a number.{end}{user}What is 47 + 85?{end}{assistant}"
    begun = f"{prompt}122{end}{user}"
    assert task.critic(prompt, "122") == task.critic(prompt, "122…") == f"{begun}Is this right?{end}{assistant}"
    assert task.again(prompt, "122", task.feedback([False])) == f"{begun}Wrong. Try again.{end}{assistant}"
    assert task.again(prompt, "122") == f"{begun}Try again.{end}{assistant}"
    assert [task.approves(task.feedback(right)) for right in ([True], [False])] == [True, False]
    assert [task.approves(text) for text in ("", "right.", "Right", "Wrong. ", "Right.…", "132")] == [None] * 6


def test_who_can_run_on_it() -> None:
    """No verifier and no answers, so that no preference is told what is right in the pool."""
    task = registry.get("task", "addition-smol-gated")
    granted = task.options["grants"]

    def lacks(name: str) -> list[str]:
        return missing_needs(registry.get("method", name).options["needs"], granted)

    asks = [name for name, entry in registry.entries("method").items() if entry.options["own_judge"]]
    assert {"self-rewarding-likelihood", "self-rewarding", "cream", "self"} <= set(asks)
    assert not any(lacks(name) for name in asks)
    assert lacks("rest-em") == ["verifier"]
    assert task.load()().grants().needs == [*sorted(granted, key=task.load()().grants().needs.index)]
