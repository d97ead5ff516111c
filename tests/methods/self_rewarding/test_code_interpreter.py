"""MARIO's self-training: solutions with the interpreter against a slow loop, what it keeps and values, whole runs."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from selfbench.methods.self_rewarding.code_interpreter import CodeInterpreter
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.errors import MethodError
from selfbench.suite.protocols import language_model
from selfbench.suite.protocols.policy import Problems
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_grants import Code, Grants
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.registry import register_method
from selfbench.suite.sandbox import Limits, Ran, Sandbox, SandboxError
from tests.methods.self_rewarding.test_killed_in_a_round import dies_and_goes_on

Play = Callable[..., Any]


def add_code(task: type) -> type:
    """`3+4=` -> `3+4?7=`: the tiny task whose responses are lines of code and what they print, end by end."""

    class Coded(task):
        max_new = 14
        step_ends = "?"
        votes = 0
        limits: ClassVar[Limits] = Limits(cpu_seconds=1, memory_mb=64)

        def grants(self) -> Grants:
            return dataclasses.replace(super().grants(), code=Code(self.program, self.observed, self.limits))

        def problems(self, bundle: BundleFolder, seed: int) -> Problems:
            found = super().problems(bundle, seed)
            shown = self.prompts(bundle.public(), found.demonstrations)
            worked = [f"{prompt[:-1]}?{total}=" for prompt, total in zip(shown, found.responses, strict=True)]
            return dataclasses.replace(found, responses=worked)

        def program(self, response: str) -> str | None:
            text = response.removesuffix(CUT_OFF)
            lines = re.findall(r"([^?=]*)\?(?:[^?=]*=)?", text)
            whole = re.fullmatch(r"([^?=]*\?([^?=]*=)?)+", text)
            if not whole or not all(re.fullmatch(r"\d{1,3}\+\d{1,3}", line) for line in lines):
                return None
            return "\n".join(f"print({line})" for line in lines)

        def answer(self, response: str) -> str | None:
            return super().answer(response.split()[-1]) if response.strip() else None

        def observed(self, response: str, output: str) -> str | None:
            last = output.split()[-1] if output.strip() else ""
            return f"{response[:-1]}{last}={CUT_OFF}" if response.endswith(f"?{CUT_OFF}") and last.isdigit() else None

    return Coded


@pytest.fixture
def coded(tiny_task: type) -> Any:
    try:
        assert Sandbox().means
    except SandboxError as error:
        pytest.skip(f"this kernel cannot hold code: {error}")
    return add_code(tiny_task)()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """The sums, and a first policy that has learned some of the demonstrations: it writes code, often the right one."""
    from .conftest import DEMONSTRATIONS, TinyPolicyTask

    terms = np.random.default_rng(0).permutation([(a, b) for a in range(10) for b in range(10)])
    task = add_code(TinyPolicyTask)()
    shown = np.arange(DEMONSTRATIONS)
    texts = [f"{a}+{b}?{a + b}=" for a, b in terms[shown].tolist()]
    sequences = join(task.tokenizer(), task.prompts({"terms": terms}, shown), texts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = task.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    everything = sequences.batch(shown, torch.device("cpu"))
    for _ in range(60):
        loss = -language_model.response_logprobs(model, *everything).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = Bundle({"terms": terms.astype(np.uint8)}, {"sums": terms.sum(axis=1).astype(np.uint8)}, model.state_dict())
    return write_bundle(tmp_path_factory.mktemp("coded") / "tiny", made)


@dataclass
class Writer:
    """A policy that goes on from what it has written by a table, and values by another."""

    after: dict[str, list[str]]
    worth: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    fitted: list[tuple[Any, ...]] = field(default_factory=list)

    def value_model(self) -> Writer:
        return self

    def generate(self, prompts: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        return [self.after[prompt][:n] for prompt in prompts]

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        self.calls.append(("step", len(prompts), n, temperature))
        return [self.after.get(prompt + text, self.after.get(text, []))[:n]
                for prompt, text in zip(prompts, begun, strict=True)]  # fmt: skip

    def values(self, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.worth.get(text, 0.0) for text in texts], dtype=torch.float64)

    def fit(self, *args: Any) -> float:
        self.fitted.append(args)
        return 0.0

    def finetune(self, examples: Sequence[Example], epochs: int) -> float:
        self.calls.append(("finetune", [tuple(example) for example in examples], epochs))
        return 0.0

    def use(self, name: str) -> None:
        self.calls.append(("use", name))


class Watching:
    """The three prompts of the scripted view, code that is computed here, and what was asked."""

    prompts = ("1+1=", "2+3=", "9+9=")
    demonstrations = (Example("4+4=", "4+4?8="),)
    answers = ("2", "5", "18")
    verdicts = 9

    def __init__(self, task: Any) -> None:
        self.task = task
        self.program, self.observed = task.program, task.observed
        self.ran: list[str] = []
        self.asked: list[tuple[int, str]] = []

    def run_code(self, snippets: Sequence[str]) -> list[Ran]:
        self.ran += snippets
        lines = [re.findall(r"print\((\d+)\+(\d+)\)", code) for code in snippets]
        return [Ran("ok", "".join(f"{int(a) + int(b)}\n" for a, b in found), "") for found in lines]

    def parse(self, response: str) -> str | None:
        program = None if response.endswith(CUT_OFF) else self.task.program(response)
        return None if program is None else self.task.answer(self.run_code([program])[0].output)

    def verify(self, numbers: Sequence[int], responses: Sequence[str]) -> list[bool]:
        self.asked += zip(numbers, responses, strict=True)
        return [self.answers[at] == self.parse(text) for at, text in zip(numbers, responses, strict=True)]


@pytest.fixture
def watching(tiny_task: type) -> Watching:
    return Watching(add_code(tiny_task)())


def started(view: Any, policy: Writer, **settings: Any) -> CodeInterpreter:
    method = CodeInterpreter(**settings)
    method.setup(policy, view)
    return method


TABLE = {
    "1+1=…": ["1+1?…", "2+1?…", "7…", "5+5?5="],
    "2+3=…": ["2+3?…", "x?…", "2+3?…", "2+2?…"],
    "9+9=…": [],
    "1+1?2=…": ["1+1?2="], "2+1?3=…": ["2+1?3=3+1?…"], "2+1?3=3+1?4=…": ["2+1?3=3+1?4="],
    "2+3?5=…": ["2+3?5=5+5?…"], "2+3?5=5+5?10=…": ["2+3?5=5+5?10=10+1?…"], "2+2?4=…": [],
    "2+3?5=5+5?10=10+1?11=…": ["2+3?5=5+5?10=10+1?11="],
}  # fmt: skip


def slow_solution(view: Watching, policy: Writer, prompt: str, text: str, snippets: int) -> str:
    """One solution, by itself: go on, run, write, until nothing is left to run."""
    for _ in range(snippets):
        program = view.task.program(text) if text.endswith(CUT_OFF) else None
        if program is None:
            return text
        output = "".join(f"{eval(line[6:-1])}\n" for line in program.split("\n"))
        seen = view.task.observed(text, output)
        if seen is None:
            return text
        text = (policy.after.get(prompt + seen) or policy.after.get(seen) or [seen])[0]
    return text


@pytest.mark.parametrize("snippets", [1, 2, 3, 8])
def test_solutions_are_those_of_a_slow_loop(watching: Watching, snippets: int) -> None:
    policy = Writer(TABLE)
    method = started(watching, policy, snippets=snippets)
    made = method.solve(policy, watching.prompts, 4, 0.6)
    assert made == [
        [slow_solution(watching, policy, prompt, text, snippets) for text in TABLE[prompt + CUT_OFF]]
        for prompt in watching.prompts
    ]
    if snippets == 8:
        assert made[0] == ["1+1?2=", "2+1?3=3+1?4=", "7…", "5+5?5="]
        assert made[1] == ["2+3?5=5+5?10=10+1?11=", "x?…", "2+3?5=5+5?10=10+1?11=", "2+2?4=…"]
        # All rows at a time, four steps and a first one; all code before is run again.
        assert [call[1] for call in policy.calls] == [3, 5, 3, 2, 0][: len(policy.calls)]
        assert "print(2+1)\nprint(3+1)" in watching.ran


def test_without_snippets_it_writes_at_a_stretch(watching: Watching) -> None:
    policy = Writer({"1+1=": ["1+1?3="]})
    assert started(watching, policy, snippets=0, candidates=1).respond(policy, ["1+1="]) == ["1+1?3="]
    assert not watching.ran


def test_a_round_trains_on_right_solutions_and_values_all(watching: Watching) -> None:
    policy = Writer(
        {"1+1=": ["1+1?2=", "1+1?9=", "0+2?2=", "1+1?2=", "7", "1+2?3="], "2+3=": ["2+2?4="] * 6, "9+9=": ["9…"] * 6},
        {"1+1?2=": 0.1, "1+1?9=": 0.7, "0+2?2=": 0.5, "1+2?3=": 0.9},
    )
    method = started(watching, policy, samples=6, snippets=0, cutoff=2, epochs=3, value_epochs=2, value_lr=0.5)
    method.round(policy, watching, 1)
    # What code prints counts, not what is written behind it; of the right ones those of the highest values are kept.
    kept = [("1+1=", "1+1?9="), ("1+1=", "0+2?2=")]
    assert policy.calls == [("use", "base"), ("finetune", [("4+4=", "4+4?8="), *kept], 3)]
    texts = ["1+1?2=", "1+1?9=", "0+2?2=", "1+2?3=", "2+2?4="]
    assert policy.fitted == [(["1+1="] * 4 + ["2+3="], texts, [1.0, 1.0, 1.0, 0.0, 0.0], 2, 0.5)]
    # One verdict an answer.
    assert watching.asked == [(0, "1+1?2="), (0, "1+2?3="), (1, "2+2?4=")]


def test_the_answer_is_the_best_of_those_that_are_not_alone(watching: Watching) -> None:
    method = started(watching, Writer({}))
    two, also_two, three, four = "1+1?2=", "0+2?2=", "1+2?3=", "2+2?4="
    assert method.choose([three, two, also_two], [0.9, 0.2, 0.3]) == also_two
    assert method.choose([three, two, "7", four], [0.4, 0.2, 1.0, 0.9]) == four
    assert method.choose([three, two, also_two, three], [0.9, 0.2, 0.3, 0.1]) == three
    # New values are all 0: the most frequent answer, the first of equally frequent ones.
    assert method.choose([three, two, also_two], [0.0] * 3) == two
    assert method.choose([three, two, also_two, three], [0.0] * 4) == three
    assert method.choose(["7", "x…"], [0.5, 0.6]) == "7"
    assert method.choose(["7", "x…", four], [0.5, 0.6, 0.0]) == four


def test_candidates_are_sampled_and_one_is_greedy(watching: Watching) -> None:
    table = {"1+1=…": ["1+2?…", "1+1?…", "0+2?…"], "1+2?3=…": ["1+2?3="], "1+1?2=…": ["1+1?2="], "0+2?2=…": ["0+2?2="]}
    policy = Writer(table, {"1+2?3=": 0.9, "0+2?2=": 0.1})
    assert started(watching, policy, candidates=3).respond(policy, ["1+1="]) == ["0+2?2="]
    assert {call[3] for call in policy.calls} == {0.6}
    policy.calls.clear()
    assert started(watching, policy, candidates=1).respond(policy, ["1+1="]) == ["1+2?3="]
    assert {call[3] for call in policy.calls} == {0.0}


def same(one: Any, two: Any) -> None:
    assert one.outcome.curve == two.outcome.curve
    assert one.outcome.predictions_sha256 == two.outcome.predictions_sha256
    assert one.outcome.diagnostics == two.outcome.diagnostics
    assert dataclasses.replace(one.counts, seconds=0) == dataclasses.replace(two.counts, seconds=0)


def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, coded: Any, bundle: BundleFolder) -> None:
    settings = {"samples": 2, "candidates": 2, "epochs": 2}
    whole = play(CodeInterpreter(**settings), folder="whole", task=coded, bundle=bundle)
    play(CodeInterpreter(**settings), folder="killed", stop_after=2, task=coded, bundle=bundle)
    resumed = play(CodeInterpreter(**settings), folder="killed", task=coded, bundle=bundle)
    same(whole, resumed)
    found = whole.outcome.diagnostics
    assert found["label_precision"] == 1.0
    assert found["labels"] > 24
    # Two solutions of 46 prompts a round, each run once or more; two candidates a test prompt.
    runs = [point.values["code_runs"] for point in whole.outcome.curve]
    assert runs[0] == 0
    assert all(later - earlier > 46 for earlier, later in itertools.pairwise(runs))
    assert found["answer_code_runs"] > 1


def test_it_learns_from_the_pool(play: Play, coded: Any, bundle: BundleFolder) -> None:
    curve = play(CodeInterpreter(candidates=1), task=coded, bundle=bundle).outcome.curve
    assert curve[-1].values["accuracy"] > curve[0].values["accuracy"] + 0.1


def test_without_samples_and_snippets_it_is_sft_from_the_first_policy(
    play: Play, coded: Any, bundle: BundleFolder
) -> None:
    alone = play(CodeInterpreter(samples=0, snippets=0, candidates=1, epochs=3), folder="n", task=coded, bundle=bundle)
    tuned = play(SFT(epochs=3), folder="sft", task=coded, bundle=bundle)
    for first, second in zip(alone.outcome.curve[:2], tuned.outcome.curve[:2], strict=True):
        assert first.values["accuracy"] == first.values["plain_accuracy"]
        assert second.values.items() <= first.values.items()
    # Solutions that know their outputs are others, and the policy is the same.
    helped = play(CodeInterpreter(samples=0, candidates=1, epochs=3), folder="h", task=coded, bundle=bundle)
    for first, second in zip(alone.outcome.curve, helped.outcome.curve, strict=True):
        assert first.values["plain_accuracy"] == second.values["plain_accuracy"]


def test_answers_are_run_for_every_method(play: Play, coded: Any, bundle: BundleFolder) -> None:
    outcome = play(ReSTEM(epochs=2), task=coded, bundle=bundle).outcome
    assert outcome.diagnostics["label_precision"] == 1.0
    assert outcome.diagnostics["code_runs"] > 0
    assert outcome.metrics["accuracy"] > 0.1


@register_method("sft", family="tests", protocol="policy", paper="-")
@dataclass
class RunsCode(PolicyMethod):
    """Runs code without having declared it."""

    def round(self, policy: Any, view: Any, number: int) -> None:
        view.run_code(["print(1)"])


def test_undeclared_code_is_not_run(play: Play, coded: Any, bundle: BundleFolder) -> None:
    with pytest.raises(MethodError, match="without declaring `code`"):
        play(RunsCode(), task=coded, bundle=bundle)


def test_where_nothing_holds_code_the_run_says_so(play: Play, coded: Any, bundle: BundleFolder) -> None:
    type(coded).limits = Limits(without=("namespaces", "landlock"))
    with pytest.raises(MethodError, match=r"nothing would hold it. It needs one of: user namespaces"):
        play(SFT(), task=coded, bundle=bundle)


def test_a_run_that_dies_in_training_runs_as_much_code_as_a_whole_one(
    play: Play, coded: Any, bundle: BundleFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_and_goes_on(play, monkeypatch, CodeInterpreter(epochs=1, candidates=2), task=coded, bundle=bundle)
