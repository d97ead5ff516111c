"""Pairs of responses in both orders: a judge of places is worth nothing, and unparsed verdicts are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.prepare import bundles as prepare
from selfbench.suite.protocols.texts import pack
from selfbench.tasks.language.judge_smol import POOL, SHOWN, TEST, JudgeSmol, both_orders

TASK = JudgeSmol()


@pytest.fixture
def bundle(tmp_path: Path) -> BundleFolder:
    made = TASK.read(Data(tmp_path))
    return write_bundle(tmp_path / "judge", made)


def test_each_pair_is_asked_in_both_orders(bundle: BundleFolder) -> None:
    public, private = bundle.public(), bundle.private()
    a, b = public["terms"][3].tolist()
    one, two = TASK.questions(public, np.array([6, 7]))
    assert one.startswith(f"What is {a} + {b}? A: {a + b}. B: ")
    assert two.endswith(f". B: {a + b}. Which is right?")
    assert TASK.answers(private, np.array([6, 7])) == ["A", "B"]
    for at in range(0, len(public["responses"]), 997):
        shown, right = public["responses"][at], private["right"][at]
        total = int(public["terms"][at // 2].sum())
        assert shown[right] == total
        assert shown[1 - right] != total


def test_orders_of_a_pair_stay_together(bundle: BundleFolder) -> None:
    for seed in range(2):
        problems = TASK.problems(bundle, seed)
        parts = [problems.demonstrations, problems.pool, problems.test]
        assert [len(part) for part in parts] == [2 * SHOWN, 2 * POOL, 2 * TEST]
        pairs = [set((part // 2).tolist()) for part in parts]
        assert [len(part) for part in pairs] == [SHOWN, POOL, TEST]
        assert not pairs[0] & pairs[1]
        assert not (pairs[0] | pairs[1]) & pairs[2]
        assert problems.test.tolist() == both_orders(np.arange(TEST)).tolist()


@pytest.mark.parametrize(("verdicts", "accuracy", "consistency"), [
    ("ABABAB", 1.0, 1.0), ("AAAAAA", 0.0, 0.0), ("BBBBBB", 0.0, 0.0), ("BABABA", 0.0, 1.0), ("ABAABA", 1 / 3, 2 / 3),
    ("A?AB?B", 1 / 3, 1 / 3), ("??????", 0.0, 0.0), ("??ABAB", 2 / 3, 2 / 3),
])  # fmt: skip
def test_only_verdicts_that_agree_in_both_orders_count(verdicts: str, accuracy: float, consistency: float) -> None:
    answers = [None if one == "?" else one for one in verdicts]
    found = TASK.scores(answers, ["A", "B"] * 3)
    assert found == pytest.approx({"accuracy": accuracy, "swap_consistency": consistency})


@pytest.mark.parametrize("text", ["", "a", "A.", " A", "A\n", "AB", "C", "The answer is A", "A…"])
def test_a_verdict_is_one_letter(text: str) -> None:
    assert TASK.answer(text) is None
    assert (TASK.answer("A"), TASK.answer("B")) == ("A", "B")


def test_the_published_model_is_asked_by_likelihood_and_never_trained_before(bundle: BundleFolder) -> None:
    task = registry.get("task", "judge-smol-published").load()()
    assert (task.first_epochs, task.votes, JudgeSmol.first_epochs) == (0, 0, 8)
    public = {**bundle.public(), "frame": pack(["", ":"])}
    cloze, probes = task.measures().questions(public, np.array([6, 7]))
    assert cloze == ([f"{words}:" for words in task.questions(public, np.array([6, 7]))], [("A", "B")] * 2)
    assert not probes
    assert TASK.measures().questions(public, np.array([6, 7])) == (None, {})
    assert prepare.bundle_folder(registry.get("task", "judge-smol-published")).path == (
        prepare.bundle_folder(registry.get("task", "judge-smol")).path
    )
