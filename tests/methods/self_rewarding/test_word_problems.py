"""Methods that search over steps, and methods of two attempts, on GSM8K and MATH: local copies, a small model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfbench.methods.common.mcts import Node
from selfbench.methods.self_rewarding.critique_loop import CritiqueLoop
from selfbench.methods.self_rewarding.rest_mcts import ReSTMCTS
from selfbench.methods.self_rewarding.score import SCoRe
from selfbench.methods.self_rewarding.tree_search import TreeSearch
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import UsageError
from selfbench.suite.places import data_folder
from selfbench.suite.protocols.policy import Problems
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.suites import expand
from selfbench.tasks.language.gsm8k import GSM8K
from selfbench.tasks.language.gsm8k_code import GSM8KCode
from selfbench.tasks.language.models import SubwordTokenizer
from selfbench.tasks.language.pretrained import PretrainedPolicy

Play = Callable[..., Any]
SOLUTION = "Half of {n} is {half}.\n\nTwice that is {n} again.\n#### {n}"
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"


class Small(GSM8K):
    """Few problems; an untrained model writes no number, and any whole response counts."""

    system = "Go."
    rank = 2
    votes = 2
    rounds = 2
    max_new = 24

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return Problems(whole.demonstrations[:6], whole.responses[:6], whole.pool[:8], whole.test[:5])

    def answer(self, response: str) -> str | None:
        return None if response.endswith(CUT_OFF) else str(len(response))


@pytest.fixture
def bundle(tiny_hub_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundleFolder:
    pytest.importorskip("peft")
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    found = Data.file
    # The published files have digests, which these have not.
    monkeypatch.setattr(
        Data, "file", lambda self, name, member: folder / member if name == "gsm8k" else found(self, name, member)
    )
    for part, count, first in (("test", 8, 5000), ("train", 2200, 0)):
        rows = [
            {"question": f"{n} of what?", "answer": SOLUTION.format(n=n, half=n / 2)}
            for n in range(first, first + count)
        ]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # Room for prompts that show an attempt, feedback on it, and another attempt.
    config = tiny_hub_model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 512}))
    return write_bundle(tmp_path / "bundle", Small().build(Data(data_folder())))


def test_lines_are_steps_with_the_empty_ones_after_them() -> None:
    text = SOLUTION.format(n=8, half=4)
    for name in ("gsm8k", "gsm8k-smol", "math"):
        task = registry.get("task", name).load()()
        assert task.steps(text) == ["Half of 8 is 4.\n\n", "Twice that is 8 again.\n", "#### 8"]
        for other in ("", "a", "a\n", "\n\na\n b", "a\n \n\nb"):
            assert "".join(task.steps(other)) == other
        assert task.steps("") == [""]
    # Where calculations are code, a step ends at their sign of equality as before.
    assert GSM8KCode().steps("1+1=2\n3") == ["1+1=", "2\n3"]
    assert PretrainedPolicy().steps("a\nb") == ["a\nb"]


def test_every_token_with_a_newline_ends_a_step(tiny_hub_model: Path) -> None:
    """In a vocabulary with merges, a full stop and the newline after it are one token."""
    file = tiny_hub_model / "tokenizer.json"
    described = json.loads(file.read_text())
    vocabulary = described["model"]["vocab"]
    merged = {".Ċ": len(vocabulary), "ĊĊ": len(vocabulary) + 1}
    vocabulary |= merged
    described["model"]["merges"] = [[".", "Ċ"], ["Ċ", "Ċ"]]
    described["pre_tokenizer"]["use_regex"] = False
    file.write_text(json.dumps(described))
    tokenizer = SubwordTokenizer(tiny_hub_model, "<|im_end|>", "<|endoftext|>")
    ids, [length] = tokenizer.encode(["a.\nb"])
    assert length == 3
    assert ids[0, 1] in tokenizer.containing("\n")
    assert set(tokenizer.containing("\n")) == {vocabulary["Ċ"], *merged.values()}
    assert set(Small().step_tokens()) == set(tokenizer.containing("\n"))
    assert PretrainedPolicy().step_tokens() == []


def test_steps_are_generated_one_by_one(play: Play, bundle: BundleFolder) -> None:
    """A search has a tree whose nodes are deeper than one step."""
    deepest: list[int] = []

    def depth(node: Node) -> int:
        return 1 + depth(node.parent) if node.parent is not None else 0

    class Looks(ReSTMCTS):
        __selfbench__ = ReSTMCTS.__selfbench__  # type: ignore[attr-defined]

        def search(self, policy: Policy, prompts: Any) -> Any:
            trees = super().search(policy, prompts)
            deepest.append(max(depth(node) for tree in trees for node in tree.walk()))
            return trees

    play(Looks(iterations=12, temperature=1.5, epochs=1), task=Small(), bundle=bundle)
    assert min(deepest) > 1


@pytest.mark.parametrize(
    "method",
    [
        TreeSearch(beams=2, samples=2, epochs=1), SCoRe(steps=1, prompts=4, sft_epochs=1),
        CritiqueLoop(samples=1, attempts=1, epochs=1, critic_epochs=1),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_methods_run_as_they_are(play: Play, bundle: BundleFolder, method: PolicyMethod) -> None:
    run = play(method, task=Small(), bundle=bundle)
    assert [point.x for point in run.outcome.curve] == [0, 1, 2]
    assert run.counts.tokens > 0


def test_further_attempts_are_turns_of_the_chat_and_feedback_names_a_line(tiny_hub_model: Path) -> None:
    task = Small()
    prompt = f"<|im_start|>system\nGo.{END}{USER}4 of what?{END}{ASSISTANT}"
    begun = f"{prompt}a\nb{END}{USER}"
    assert (
        task.critic(prompt, "a\nb") == task.critic(prompt, f"a\nb{CUT_OFF}") == f"{begun}Is this right?{END}{ASSISTANT}"
    )
    assert task.feedback([True, False, False]) == "Line 2 is wrong."
    assert task.again(prompt, "a\nb", "Line 2 is wrong.") == f"{begun}Line 2 is wrong. Try again.{END}{ASSISTANT}"
    assert task.again(prompt, "a\nb") == f"{begun}Try again.{END}{ASSISTANT}"
    assert [task.approves(task.feedback(right)) for right in ([True], [True, False], [False])] == [True, False, False]
    assert [task.approves(text) for text in ("", "Line 0 is wrong.", "Line 2 is wrong.…", "line 2 is wrong.")] == [
        None
    ] * 4


@pytest.mark.parametrize("method", ["rest-mcts", "tree-search"])
def test_where_responses_have_no_steps_a_search_over_them_is_refused(method: str) -> None:
    for task in ("asdiv-smol", "addition-smol", "arc-easy"):
        with pytest.raises(
            UsageError, match=f"'{method}' needs steps, which task '{task}' .* It runs on .*arithmetic-"
        ):
            expand(tasks=[task], methods=[method], seeds=[0])


def test_tasks_whose_responses_have_steps_grant_them() -> None:
    for name, entry in registry.entries("task").items():
        if entry.protocol == "policy" and entry.module:
            task = entry.load()()
            assert bool(task.step_ends) == ("steps" in entry.options["grants"]), name
            assert task.grants().steps is None or task.grants().steps.ends == task.step_ends
    assert {"verifier", "attempts"} <= set(registry.get("task", "math").options["grants"])
    assert dataclasses.asdict(Small().grants().steps) == {"ends": "\n"}
