"""The real SmolLM2-135M-Instruct, where its artefact is on this machine: converted, tokenised, trained a little."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.data import Data
from selfbench.suite.meter import Meter
from selfbench.suite.places import data_folder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.context import Context, prepare_torch
from selfbench.suite.protocols.first_policy import make_first
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.texts import unpack
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire

pytestmark = pytest.mark.slow
TASK = "addition-smol"


@pytest.fixture(scope="module", autouse=True)
def artefact() -> None:
    for package in ("gguf", "peft"):
        pytest.importorskip(package)
    if not Data(data_folder()).present("smollm2"):
        pytest.skip("needs the model: `selfbench data fetch smollm2` (93 MB)")


@pytest.mark.filterwarnings("default")
def test_the_model_learns_the_form_of_an_answer_from_its_demonstrations(tmp_path: Path) -> None:
    entry = registry.get("task", TASK)
    folder, task = build(entry), entry.load()()
    assert folder.facts["parameters"] - folder.facts["trained"] == 134_515_008
    assert folder.facts["frame"] == [
        "<|im_start|>system\nAnswer with a number.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
    # Digits are tokens of their own, marks of the template too.
    tokenizer = task.tokenizer()
    _, lengths = tokenizer.encode(["132", "<|im_start|>"])
    assert lengths.tolist() == [3, 1]
    spec = RunSpec(
        task=TaskRef(name=TASK, version="1"), method=MethodRef(name="sft", version="1"), seed=0,
        budget=Budget(currency="tokens", limit=1e9), precision="fp32",
    )  # fmt: skip
    ours, theirs = socket.socketpair()
    context = Context(spec, prepare_torch(spec), Wire(theirs), tmp_path)
    public, problems = folder.public(), task.problems(folder, 0)
    policy = Policy(task.policy(folder.model(), "fp32"), task, Meter(spec.budget, "sft"), context)
    prompts, responses = task.prompts(public, problems.demonstrations), list(problems.responses)
    shown = [Example(*pair) for pair in zip(prompts, responses, strict=True)]
    test = task.prompts(public, problems.test[:32])

    def parsed() -> float:
        return float(np.mean([task.answer(text) is not None for [text] in policy.generate(test, 1, 0.0)]))

    before = parsed()
    first = float(policy.logprobs(prompts, responses).mean())
    policy.finetune(shown[:32], epochs=4)
    assert float(policy.logprobs(prompts, responses).mean()) > first + 1.0
    assert parsed() == 1.0
    policy.use("base")
    # As published it begins a sentence, of which five tokens are no end.
    assert parsed() == before == 0.0
    [[text]] = policy.generate(test[:1], 1, 0.0)
    assert text.endswith(CUT_OFF)
    ours.close()
    theirs.close()


@pytest.mark.filterwarnings("default")
def test_the_published_model_is_worthless_as_a_judge(tmp_path: Path) -> None:
    """It names the first response of every pair, in both orders: it agrees with itself in none, is right in none."""
    entry = registry.get("task", "judge-smol-published")
    folder, task = build(entry), entry.load()()
    whole = task.problems(folder, 0)
    problems = dataclasses.replace(whole, test=whole.test[:128])
    spec = RunSpec(
        task=TaskRef(name="judge-smol-published", version="1"), method=MethodRef(name="sft", version="1"), seed=0,
        budget=Budget(currency="tokens", limit=1e9), precision="fp32",
    )  # fmt: skip
    device = prepare_torch(spec)
    first = make_first(task, folder.public(), folder.model(), problems, spec, device)
    verdicts = unpack(first.responses["greedy"])
    assert float(np.mean([verdict == "A" for verdict in verdicts])) >= 0.95
    scores = task.scores([task.answer(verdict) for verdict in verdicts], task.answers(folder.private(), problems.test))
    # A coin would agree with itself in half of the pairs, and be right in both orders of a quarter.
    assert scores["swap_consistency"] <= 0.05
    assert scores["accuracy"] <= 0.05
    # What it writes when it is asked for a verdict is none.
    ours, theirs = socket.socketpair()
    context = Context(spec, device, Wire(theirs), tmp_path)
    policy = Policy(task.policy(folder.model(), "fp32"), task, Meter(spec.budget, "sft"), context)
    written = policy.generate(task.prompts(folder.public(), problems.test[:16]), 1, 0.0)
    assert [task.answer(text) for [text] in written] == [None] * 16
    ours.close()
    theirs.close()
