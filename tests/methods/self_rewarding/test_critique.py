"""SELF and the critique loop: what they keep by scripted answers and feedback, and whole runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from selfbench.methods.self_rewarding.critique_loop import CritiqueLoop
from selfbench.methods.self_rewarding.self_evolution import SELF
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_grants import Attempts, Critique, Grants
from selfbench.suite.protocols.policy_method import PolicyMethod

Play = Callable[..., Any]
SHOWN = ("4+4=", "8")


def add_words(task: type) -> type:
    """`3+4=`, `8`, `0` -> `3+4?8?0=`: the tiny tasks with words for feedback, 1 for a right step and 0 for a wrong."""

    class Words(task):
        def grants(self) -> Grants:
            words = Critique(self.critic, self.feedback, self.approves)
            return dataclasses.replace(super().grants(), attempts=Attempts(self.again, words))

        def again(self, prompt: str, response: str, feedback: str = "") -> str:
            return f"{prompt[:-1]}?{response.removesuffix('…')}?{feedback}="

        def critic(self, prompt: str, response: str) -> str:
            return f"{prompt[:-1]}?{response.removesuffix('…')}?"

        def feedback(self, right: Sequence[bool]) -> str:
            return "".join("01"[good] for good in right)

        def approves(self, feedback: str) -> bool | None:
            return "0" not in feedback if re.fullmatch("[01]+", feedback) else None

    return Words


@pytest.fixture
def words(tiny_task: type) -> Any:
    return add_words(tiny_task)()


@pytest.fixture
def talking(view: Any, words: Any) -> Any:
    view.again, view.critic, view.feedback, view.approves = words.again, words.critic, words.feedback, words.approves
    view.steps, view.verdicts = lambda text: [text], 9
    return view


@dataclass
class Table:
    """Responses by prompt, one after the other."""

    table: dict[str, list[str]]
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def generate(self, prompts: Sequence[str], n: int, temperature: float, under: str = "") -> list[list[str]]:
        self.calls.append(("generate", list(prompts), n, temperature, under))
        return [[self.table[prompt].pop(0) for _ in range(n)] for prompt in prompts]

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        assert not prompts
        return []

    def finetune(self, examples: Sequence[Example], weights: Any = None, epochs: int = 1) -> float:
        self.calls.append(("finetune", [tuple(example) for example in examples], weights, epochs))
        return 0.0

    def keep(self, name: str) -> None:
        self.calls.append(("keep", name))

    def use(self, name: str) -> None:
        self.calls.append(("use", name))


def test_self_trains_on_refined_answers_that_it_approves_of(talking: Any) -> None:
    method = SELF(beta=0.5, epochs=3)
    policy = Table({})
    method.setup(policy, talking)
    method.round(policy, talking, 1)
    # The single demonstration has no other one for a flaw: it is praised, and stays as it is.
    skills = [("4+4?8?", "1"), ("4+4?8?1=", "8")]
    assert policy.calls == [("use", "base"), ("finetune", [*skills, SHOWN], [1.0, 1.0, 0.5], 3)]
    policy = Table(
        {
            "1+1=": ["3"], "1+1?3?": ["0"], "1+1?3?0=": ["2"], "1+1?2?": ["1"],  # refined and praised
            "2+3=": ["5"], "2+3?5?": ["1"],  # praised at once, and not asked again
            "9+9=": ["1…"], "9+9?1?": ["0", "0"], "9+9?1?0=": ["19…"],  # no refinement; found wrong again
        }
    )  # fmt: skip
    method.round(policy, talking, 2)
    assert policy.calls[-2:] == [
        ("use", "base"),
        ("finetune", [*skills, SHOWN, ("1+1=", "2"), ("2+3=", "5")], [1.0, 1.0, 0.5, 0.5, 0.5], 3),
    ]
    assert not talking.asked
    # Feedback that cannot be read refines nothing and praises nothing; what does not parse is never trained on.
    policy = Table(
        {"1+1=": ["3"], "1+1?3?": ["7", "7"], "2+3=": ["x"], "2+3?x?": ["1"], "9+9=": ["18"], "9+9?18?": ["0", "0"],
         "9+9?18?0=": ["18"]}
    )  # fmt: skip
    method.round(policy, talking, 3)
    assert policy.calls[-1][1] == [*skills, SHOWN]


def test_self_answers_with_a_refinement_where_it_finds_fault(talking: Any) -> None:
    table = {"1+1=": ["3"], "1+1?3?": ["0"], "1+1?3?0=": ["2"], "2+3=": ["4"], "2+3?4?": ["1"]}
    method = SELF()
    method.setup(None, talking)
    assert method.respond(Table({k: list(v) for k, v in table.items()}), ["1+1=", "2+3="]) == ["2", "4"]
    plain = SELF(refine=False)
    plain.setup(None, talking)
    assert plain.respond(Table({k: list(v) for k, v in table.items()}), ["1+1=", "2+3="]) == ["3", "4"]


def test_the_critic_leads_where_sampling_found_nothing(talking: Any) -> None:
    method = CritiqueLoop(samples=2, attempts=2, cutoff=1, epochs=3, critic_epochs=5)
    policy = Table(
        {
            "1+1=": ["2", "3"],
            "2+3=": ["4", "6"], "2+3?4?": ["0"], "2+3?4?0=": ["7"], "2+3?7?": ["0"], "2+3?7?0=": ["5"],
            "9+9=": ["1…", "19"], "9+9?1?": ["1", "1"],  # praise of what is wrong leads nowhere
        }
    )  # fmt: skip
    method.setup(policy, talking)
    method.round(policy, talking, 1)
    begun = [SHOWN, ("4+4?8?1=", "8")]
    assert policy.calls[:4] == [
        ("finetune", [("4+4?8?", "1")], None, 5),
        ("keep", "critic"),
        ("use", "base"),
        ("finetune", begun, None, 3),
    ]
    assert [(prompts, t, under) for _, prompts, _, t, under in policy.calls[4:-2]] == [
        (["1+1=", "2+3=", "9+9="], 0.7, ""),
        (["2+3?4?", "9+9?1?"], 0.0, "critic"),
        (["2+3?4?0="], 0.7, ""),
        (["2+3?7?", "9+9?1?"], 0.0, "critic"),
        (["2+3?7?0="], 0.7, ""),
    ]
    assert policy.calls[-2:] == [("use", "base"), ("finetune", [*begun, ("1+1=", "2"), ("2+3=", "5")], None, 3)]
    assert len(talking.asked) == len(set(talking.asked))


def same(one: Any, two: Any) -> None:
    assert one.outcome.curve == two.outcome.curve
    assert one.outcome.predictions_sha256 == two.outcome.predictions_sha256
    assert one.outcome.diagnostics == two.outcome.diagnostics
    assert dataclasses.replace(one.counts, seconds=0) == dataclasses.replace(two.counts, seconds=0)


@pytest.mark.parametrize("method", [SELF(epochs=2), CritiqueLoop(epochs=2, critic_epochs=2)], ids=str)
def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, words: Any, method: PolicyMethod) -> None:
    whole = play(dataclasses.replace(method), folder="whole", task=words)
    play(dataclasses.replace(method), folder="killed", stop_after=2, task=words)
    same(whole, play(dataclasses.replace(method), folder="killed", task=words))
    assert whole.counts.tokens > 0
    if isinstance(method, CritiqueLoop):
        assert whole.outcome.diagnostics["label_precision"] == 1.0


def test_without_samples_or_attempts_nothing_is_asked_of_the_pool(play: Play, words: Any) -> None:
    none = play(SELF(samples=0, epochs=2), folder="none", task=words).outcome
    assert all(point.values["labels"] == 0 for point in none.curve)
    alone = play(CritiqueLoop(attempts=0, epochs=2), folder="alone", task=words)
    helped = play(CritiqueLoop(attempts=2, epochs=2), folder="helped", task=words)
    assert helped.outcome.diagnostics["verdicts"] > alone.outcome.diagnostics["verdicts"]
