"""Agent-R: search, pairs, splices by hand and by a slow loop; episodes in real runs with the real environment."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.common.mcts import Node
from selfbench.methods.self_rewarding.agent_r import (
    AgentR,
    bound,
    descend,
    ends_of,
    judging_examples,
    mean,
    parting,
    pay,
    spliced,
)
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.protocols.first_policy import make_first
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_grants import Critique, Environment, Grants, Verifier
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.texts import unpack
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.registry import register_method
from selfbench.suite.run.policy_scorer import PolicyScorer

Play = Callable[..., Any]
LIMIT = 5


def replay(world: str, actions: str) -> str:
    """`3+4=`, a walk: each digit is added, `9` takes the last step back; `+` where the sum is `world`'s, else `=`."""
    total, before, answers = 0, [], ""
    for action in actions[:LIMIT]:
        if action == "9":
            total = before.pop() if before else total
        else:
            before.append(total)
            total += int(action)
        answers += "+" if total == int(world) else "="
        if answers[-1] == "+":
            break
    return answers


def add_environment(task: type) -> type:
    """The tiny additions as walks: digits are actions, answered by `+`, which ends the episode, or by `=`."""

    class Walks(task):
        max_new = 2 * LIMIT + 1
        step_ends = "0123456789"

        def grants(self) -> Grants:
            words = Critique(self.critic, self.feedback, self.approves)
            environment = Environment("+=", self.worlds, self.react, "9", words)
            return dataclasses.replace(super().grants(), verifier=Verifier(99), environment=environment)

        def answer(self, response: str) -> str | None:
            return response[::2] if re.fullmatch(r"([0-9][+=])+", response) else None

        def steps(self, response: str) -> list[str]:
            return re.findall(r"[0-9][+=]?", response)

        def critic(self, prompt: str, response: str) -> str:
            return f"{prompt}{response.removesuffix(CUT_OFF).rstrip('+=')}?"

        def feedback(self, right: Sequence[bool]) -> str:
            return "?1" if all(right) else "?0"

        def approves(self, feedback: str) -> bool | None:
            return {"?1": True, "?0": False}.get(feedback)

        def worlds(self, private: Any, indices: Any) -> list[str]:
            return [str(total) for total in private["sums"][indices].tolist()]

        answers = worlds

        def react(self, world: str, response: str) -> tuple[str, bool]:
            actions = re.sub("[^0-9]", "", response)
            answer = replay(world, actions)[-1]
            return answer, answer == "+" or len(actions) >= LIMIT

        def accepts(self, answer: str, truth: str) -> bool:
            return len(replay(truth, answer)) == len(answer) and replay(truth, answer)[-1] == "+"

        def solutions(self, private: Any, indices: Any) -> list[str]:
            found = []
            for world in self.worlds(private, indices):
                steps = [8] * (int(world) // 8) + ([int(world) % 8] if int(world) % 8 or int(world) == 0 else [])
                actions = "".join(map(str, steps))
                found.append("".join(a + b for a, b in zip(actions, replay(world, actions), strict=True)))
            return found

        def problems(self, bundle: Any, seed: int) -> Any:
            found = super().problems(bundle, seed)
            return dataclasses.replace(found, responses=self.solutions(bundle.private(), found.demonstrations))

    return Walks


@pytest.fixture
def walks(tiny_task: type) -> Any:
    return add_environment(tiny_task)()


@pytest.fixture(autouse=True)
def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers that keep the greedy responses of round 0."""
    read = PolicyScorer._read

    def keep(self: Any, arrays: Any, name: str, each: int) -> list[str]:
        found = read(self, arrays, name, each)
        if name == "greedy" and not hasattr(self, "first"):
            self.first = found
        return found

    monkeypatch.setattr(PolicyScorer, "_read", keep)


def grown() -> dict[str, Node]:
    """A root with children a (two ends, paid 1 and 0), b (unvisited), c (an end, paid 0)."""
    root = Node()
    found = {"root": root}
    found["a"], found["b"], found["c"] = (root.add(text) for text in ("a…", "b…", "c"))
    pay(found["c"], 0.0)
    found["aa"], found["ab"], found["ac"] = (found["a"].add(text) for text in ("aa", "ab", "ac…"))
    pay(found["aa"], 1.0)
    pay(found["ab"], 0.0)
    return found


def test_what_is_paid_and_chosen_by_hand() -> None:
    tree = grown()
    assert (tree["root"].visits, tree["root"].value) == (3, 1.0)
    assert (tree["a"].visits, tree["a"].value, tree["a"].ended) == (2, 1.0, False)
    assert bound(tree["a"], tree["root"], 0.25) == pytest.approx(0.5 + 0.25 * math.sqrt(math.log(3) / 2))
    assert bound(tree["b"], tree["root"], 0.25) == math.inf
    assert descend(tree["root"], 0.25) is tree["b"]
    pay(tree["b"], 0.0)
    # It has no children: it is an end from now on, and the other way is the only one.
    assert tree["b"].ended
    assert descend(tree["root"], 0.25) is tree["ac"]
    pay(tree["ac"], 1.0)
    assert tree["a"].ended
    assert tree["root"].ended
    assert descend(tree["root"], 0.25) is None
    assert ends_of(tree["root"]) == [tree["aa"], tree["ab"], tree["ac"], tree["b"], tree["c"]]
    assert [mean(node) for node in ends_of(tree["root"])] == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert ends_of(Node()) == []


def test_splices_go_back_to_where_both_part() -> None:
    good, bad = ["1=", "2=", "4+"], ["1=", "3=", "5=", "6="]
    assert parting(good, bad) == 1
    assert parting(good, good[:2]) == 2
    assert spliced(["1", "2", "4"], 1, 1, "9") == ["9", "2", "4"]
    assert spliced(["1", "2", "4"], 1, 3, "9") == ["9", "9", "9", "2", "4"]
    # In the world: 1 + 3, back, + 2 + 4.
    assert replay("7", "13" + "".join(spliced(["1", "2", "4"], 1, 1, "9"))) == "====+"


@dataclass
class Walker:
    """A policy whose next steps are given by the response so far, in the world of 7; it judges `3` and `5` wrong."""

    walks: Any
    after: dict[str, list[str]]
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        made = [[text.removesuffix(CUT_OFF) + one for one in self.after.get(text, ["8"])[:n]] for text in begun]
        return [self.answered([prompt] * len(texts), texts) for prompt, texts in zip(prompts, made, strict=True)]

    def answered(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        found = [self.walks.react("7", text) for text in responses]
        return [text + a + ("" if over else CUT_OFF) for text, (a, over) in zip(responses, found, strict=True)]

    def generate(self, prompts: Sequence[str], n: int, temperature: float, under: str) -> list[list[str]]:
        assert (n, temperature, under) == (1, 0.0, "judge")
        self.calls.append(("judge", list(prompts)))
        return [["?0" if prompt[-2] in "35" else "?1"] for prompt in prompts]

    def finetune(self, examples: Sequence[Example], epochs: int) -> float:
        self.calls.append(("finetune", [tuple(one) for one in examples], epochs))
        return 0.0

    def use(self, name: str) -> None:
        self.calls.append(("use", name))

    def keep(self, name: str) -> None:
        self.calls.append(("keep", name))


@pytest.fixture
def walking(view: Any, walks: Any) -> Any:
    view.prompts, view.demonstrations = ["3+4="], (Example("8+1=", "8=1+"),)
    view.parse, view.steps, view.critic, view.revision = walks.answer, walks.steps, walks.critic, "9"
    view.feedback, view.approves, view.verdicts = walks.feedback, walks.approves, 99
    view.actions = lambda steps: [step.rstrip("+=") for step in steps]
    view.verify = lambda numbers, texts: [walks.accepts(walks.answer(text), "7") for text in texts]
    return view


def test_a_round_by_hand(walks: Any, walking: Any) -> None:
    policy = Walker(walks, {CUT_OFF: ["1", "3"], "1=…": ["2", "3"], "1=2=…": ["4"], "1=3=…": ["5", "6"]})
    method = AgentR(iterations=8, branch=2, cutoff=99, epochs=3)
    method.setup(policy, walking)
    method.round(policy, walking, 1)
    _, [skill], epochs = policy.calls[0]
    assert skill in {("8+1=8?", "?1"), ("8+1=8=1?", "?1")}
    assert epochs == 4
    assert policy.calls[1:3] == [("keep", "judge"), ("use", "base")]
    # With one demonstration there is no other one whose steps are wrong.
    assert policy.calls[-2] == ("use", "base")
    _, examples, epochs = policy.calls[-1]
    assert epochs == 3
    assert examples[0] == ("8+1=", "8=1+")
    # One good episode; the bad ones beside it never reach 7 again: 1 3 5 8 8, 1 3 6 8 8 and 3 8 8 8 8.
    assert examples[1] == ("3+4=", "1=2=4+")
    expected = {
        # The judge calls 3 wrong at once: one step back leads to where both part.
        ("3+4=1=3=", "9=2=4+"),
        ("3+4=3=", "9=1=2=4+"),
    }
    assert set(examples[2:]) == expected
    assert examples[2:].count(("3+4=1=3=", "9=2=4+")) == 2
    [(_, judged)] = [call for call in policy.calls if call[0] == "judge"]
    # Each bad episode from where it parts, without the answer to the step; nothing that both share.
    assert "3+4=1=3?" in judged
    assert "3+4=1?" not in judged
    assert "3+4=3=8=8=8=8?" in judged


def test_a_judge_that_praises_everything_leaves_no_room(walks: Any, walking: Any) -> None:
    policy = Walker(walks, {CUT_OFF: ["1", "2"], "1=…": ["6"]})
    method = AgentR(iterations=8, branch=2, cutoff=9)
    method.setup(policy, walking)
    method.round(policy, walking, 2)
    # 2 8 8 8 8 is over: nothing can be spliced to its end.
    assert policy.calls[-1][1] == [("8+1=", "8=1+"), ("3+4=", "1=6+")]


def test_what_a_late_revision_makes_too_long_is_left_out(walks: Any, walking: Any) -> None:
    policy = Walker(walks, {CUT_OFF: ["1", "2"], "1=…": ["2"], "1=2=…": ["4"], "2=…": ["5"], "2=5+": []})
    policy.after |= {"2=…": ["1"], "2=1=…": ["3"]}
    method = AgentR(iterations=8, branch=2, cutoff=9)
    method.setup(policy, walking)
    method.round(policy, walking, 2)
    # 2 1 3, three steps back, 1 2 4 are nine actions where five are allowed.
    assert policy.calls[-1][1] == [("8+1=", "8=1+"), ("3+4=", "1=2=4+")]


def test_trees_without_a_success_teach_nothing(walks: Any, walking: Any) -> None:
    policy = Walker(walks, {})
    method = AgentR(iterations=3, branch=1)
    method.setup(policy, walking)
    method.round(policy, walking, 2)
    assert policy.calls[-1][1] == [("8+1=", "8=1+")]


def test_searches_are_those_of_a_slow_loop(walks: Any, walking: Any) -> None:
    """The authors' search, one tree and one recursion at a time, on random worlds of steps."""
    draw = np.random.default_rng(0)

    class Random(Walker):
        def step(self, prompts: Any, begun: Any, n: int, temperature: float) -> list[list[str]]:
            for text in begun:
                if text not in self.after:
                    self.after[text] = list(map(str, draw.integers(0, 9, n)))
            return super().step(prompts, begun, n, temperature)

    class Slow:
        def __init__(self, text: str) -> None:
            self.text, self.children, self.n, self.w, self.done = text, [], 0, 0.0, False

    def run(policy: Walker, path: list[Any]) -> None:
        node = path[-1]
        if not node.children:
            [texts] = Walker.step(policy, ["3+4="], [node.text], 3, 1.0)
            node.children = [Slow(text) for text in dict.fromkeys(texts)]
            for child in node.children:
                if not child.text.endswith(CUT_OFF):
                    for above in [child, *reversed(path)]:
                        above.n += 1
                        above.w += walks.accepts(walks.answer(child.text), "7")
                        above.done = all(one.done for one in above.children)
        best, score = None, -1.0
        for child in node.children:
            value = math.inf if not child.n else child.w / child.n + 0.25 * math.sqrt(math.log(node.n) / child.n)
            if not child.done and value > score:
                best, score = child, value
        if best is None:
            node.done = True
        else:
            run(policy, [*path, best])

    for trial in range(30):
        policy = Random(walks, {})
        method = AgentR(iterations=int(draw.integers(1, 7)), branch=3)
        method.setup(policy, walking)
        walking.prompts = ["3+4="]
        [tree] = method.search(policy, walking)

        root = Slow(CUT_OFF)
        for _ in range(method.iterations):
            if not root.done:
                run(policy, [root])
        pairs = [(root, tree)]
        while pairs:
            one, two = pairs.pop()
            assert (one.text, one.n, one.w, one.done) == (two.text, two.visits, two.value, two.ended), trial
            assert len(one.children) == len(two.children)
            pairs += zip(one.children, two.children, strict=True)


def test_judging_is_learned_from_the_steps_of_demonstrations(walking: Any) -> None:
    walking.demonstrations = (Example("8+1=", "8=1+"), Example("2+3=", "5+"))
    right = {("8+1=8?", "?1"), ("8+1=8=1?", "?1"), ("2+3=5?", "?1")}
    wrong = {("8+1=5?", "?0"), ("2+3=8?", "?0")}
    seen: set[tuple[str, str]] = set()
    for _ in range(30):
        found = judging_examples(walking)
        assert sum(example in right for example in found) == 2
        assert len(set(found) & wrong) == len(found) - 2
        seen |= set(found)
    assert seen == right | wrong


@register_method("agent-r", family="tests", protocol="policy", paper="-", needs=("verifier", "environment"))
@dataclass
class Plays(PolicyMethod):
    """Plays episodes, goes on from given actions, and trains on what the environment wrote."""

    def round(self, policy: Any, view: Any, number: int) -> None:
        if number > 1:
            return
        tokens = policy._calls.meter.counts.tokens
        self.made = policy.generate(view.prompts, 2, 1.0)
        self.taken = policy._calls.meter.counts.tokens - tokens
        self.right = view.verify(
            [at for at, texts in enumerate(self.made) for _ in texts], [text for texts in self.made for text in texts]
        )
        self.steps = policy.step(view.prompts, ["1=…"] * len(view.prompts), 2, 1.0)
        self.answered = policy.answered(view.prompts[:2], ["0", "x"])
        said = policy.generate([view.critic(view.prompts[0], "1")], 3, 1.5)
        self.said = said[0]
        before = policy.logprobs(view.prompts[:1], ["1=2="])
        parts = [policy.logprobs([view.prompts[0] + seen], [f"{action}…"], unfinished=True)
                 for seen, action in (("", "1"), ("1=", "2"))]  # fmt: skip
        stop = policy.logprobs([view.prompts[0] + "1=2="], [""])
        assert torch.allclose(before, sum(parts) + stop)
        assert torch.allclose(policy.logprobs(view.prompts[:1], ["1=2="], mean=True), before / 3)


def test_episodes_are_played_in_the_environment(play: Play, walks: Any) -> None:
    method = Plays()
    played = play(method, task=walks)
    worlds = played.scorer._pool
    generated = 0
    for world, texts in zip(worlds, method.made, strict=True):
        for text in texts:
            generated += sum(symbol not in "+=…" for symbol in text)
            actions = walks.answer(text)
            if actions is not None:
                assert text[1::2] == replay(world, actions)
                assert text[-1] == "+" or len(actions) == LIMIT
    assert method.taken == generated
    whole = [walks.answer(text) is not None and text.endswith("+") for texts in method.made for text in texts]
    assert method.right == whole
    assert any(method.right)
    assert not all(method.right)
    for world, texts in zip(worlds, method.steps, strict=True):
        for text in texts:
            if walks.answer(text.removesuffix(CUT_OFF)) is not None:
                assert text[3] == replay(world, "1" + text[2])[-1]
                assert text.endswith(CUT_OFF) == (text[3] == "=")
    assert method.answered[0] in ("0=…", "0+")
    assert method.answered[1] == "x"
    # Words about an episode are no episode: nothing answers, and nothing that the environment writes is said.
    assert all(not set(text) & set("+=") for text in method.said)
    values = played.outcome.curve[0].values
    assert values["parse_rate"] > 0.9
    right = [walks.answer(text) is not None and text.endswith("+") for text in played.scorer.first]
    assert values["accuracy"] == np.mean(right)


@pytest.mark.parametrize("make", [AgentR, ReSTEM, SFT])
def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, walks: Any, make: type) -> None:
    settings = {"iterations": 2, "branch": 2, "epochs": 1} if make is AgentR else {"epochs": 1}
    whole = play(make(**settings), task=walks, folder="whole")
    for stop in (1, 2):
        play(make(**settings), task=walks, folder=f"killed{stop}", stop_after=stop)
        resumed = play(make(**settings), task=walks, folder=f"killed{stop}")
        assert resumed.outcome.curve == whole.outcome.curve
        assert resumed.outcome.predictions_sha256 == whole.outcome.predictions_sha256


def test_first_policies_that_are_made_for_all_methods_play_the_same_episodes(
    play: Play, walks: Any, tiny_bundle: Any
) -> None:
    played = play(SFT(epochs=1), task=walks)
    problems = walks.problems(tiny_bundle, 0)
    spec, public, private = played.scorer._spec, tiny_bundle.public(), tiny_bundle.private()
    made = make_first(walks, public, tiny_bundle.model(), problems, spec, torch.device("cpu"), private)
    assert unpack(made.responses["greedy"]) == played.scorer.first


def test_hidden_answers_move_no_episode(play: Play, walks: Any) -> None:
    plain = play(SFT(epochs=1), task=walks, folder="plain").outcome
    permuted = play(SFT(epochs=1), task=walks, folder="permuted", permute=1).outcome
    assert plain.predictions_sha256 == permuted.predictions_sha256
    assert plain.metrics != permuted.metrics


@register_method("sft", family="tests", protocol="policy", paper="-")
@dataclass
class Demonstrations(PolicyMethod):
    """Fine-tuning on the demonstrations from the first policy, every round."""

    def round(self, policy: Any, view: Any, number: int) -> None:
        policy.use("base")
        policy.finetune(view.demonstrations, epochs=3)


def test_without_search_it_is_the_baseline(play: Play, walks: Any) -> None:
    found = play(AgentR(iterations=0, epochs=3), task=walks, folder="none").outcome
    baseline = play(Demonstrations(), task=walks, folder="baseline").outcome
    assert found.predictions_sha256 == baseline.predictions_sha256
    assert [point.values for point in found.curve] == [point.values for point in baseline.curve]
