"""Few-shot prompting: these prompts on every kind of task, nothing trained, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfbench.methods.self_rewarding.few_shot import FewShot
from selfbench.suite import registry
from selfbench.suite.bundle import Array, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import MethodError
from selfbench.suite.needs import missing_needs
from selfbench.suite.places import data_folder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.generation import OwnSampler, generate
from selfbench.suite.protocols.policy import PolicyTask, Problems
from selfbench.suite.protocols.policy_evaluation import Evaluation
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_grants import Grants, Shots
from selfbench.suite.protocols.policy_grants.shots import in_a_row
from selfbench.suite.protocols.policy_measures import Cloze, Measures
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.policy_view import PolicyView
from selfbench.suite.protocols.sampling import Sampling
from selfbench.suite.protocols.texts import unpack
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.registry import register_method
from selfbench.tasks.language.addition_smol import AdditionSmol
from selfbench.tasks.language.rooms_tiny import ANSWERS, BACK, ROOMS, RoomsTiny

Play = Callable[..., Any]


@register_method("sft", family="tests", protocol="policy", paper="-")
@dataclass
class Idle(PolicyMethod):
    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        """Nothing."""


@pytest.fixture
def task(tiny_task: type[PolicyTask]) -> PolicyTask:
    class Shown(tiny_task):  # type: ignore[misc, valid-type]
        def grants(self) -> Grants:
            return dataclasses.replace(super().grants(), shots=Shots(functools.partial(in_a_row, separator="?")))

    return Shown()


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each evaluation was of, and what it gave."""
    seen: list[Any] = []
    real = Evaluation.responses

    def responses(self: Evaluation, prompts: Any, number: int, cloze: Any, probes: Any) -> Any:
        made = real(self, prompts, number, cloze, probes)
        seen.append(SimpleNamespace(prompts=list(prompts), cloze=cloze, probes=probes, made=made))
        return made

    monkeypatch.setattr(Evaluation, "responses", responses)
    return seen


def shots_of(method: FewShot) -> list[Example]:
    return list(method.preceded.keywords["shots"])


def test_without_shots_it_is_the_first_policy(play: Play, task: PolicyTask) -> None:
    nothing = play(Idle(), task=task, folder="idle").outcome
    shown = play(FewShot(k=0), task=task, folder="zero").outcome
    assert shown == nothing
    assert len({point.values["accuracy"] for point in shown.curve}) == 1
    assert play(FewShot(k=2), task=task, folder="two").outcome.curve[0] == nothing.curve[0]


def test_the_drawn_ones_stand_before_every_question_of_the_evaluation(
    play: Play, task: PolicyTask, tiny_bundle: BundleFolder, evaluated: list[Any]
) -> None:
    method = FewShot(k=3)
    run = play(method, task=task)
    public, problems = tiny_bundle.public(), task.problems(tiny_bundle, 0)
    test = task.prompts(public, problems.test)
    pairs = list(zip(task.prompts(public, problems.demonstrations), problems.responses, strict=True))
    assert len(set(shots_of(method))) == 3
    assert set(shots_of(method)) <= set(pairs)
    (a, x), (b, y), (c, z) = shots_of(method)
    expected = [f"{a}{x}?{b}{y}?{c}{z}?{prompt}" for prompt in test]
    assert [one.prompts for one in evaluated] == [test, expected, expected, expected]
    # The first policy answers them, greedily.
    model = task.model()
    model.load_state_dict(tiny_bundle.model())
    sampler = OwnSampler(model.eval(), task.tokenizer(), 1)
    slow = [
        generate(sampler, task.tokenizer(), [prompt], 1, Sampling(0.0), max_new=3, generator=torch.Generator())[0][0]
        for prompt in expected
    ]
    assert unpack(evaluated[-1].made["greedy"]) == slow
    assert len(unpack(evaluated[-1].made["votes"])) == task.votes * len(test)
    values = run.outcome.curve[-1].values
    assert (values["tokens"], values["labels"], run.counts.forward, run.counts.backward) == (0, 0, 0, 0)
    assert run.counts.labels == len(pairs)


def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, task: PolicyTask) -> None:
    one, other = FewShot(), FewShot()
    whole = play(one, task=task, folder="whole")
    play(FewShot(), task=task, folder="killed", stop_after=1)
    resumed = play(FewShot(), task=task, folder="killed")
    assert whole.outcome == resumed.outcome
    play(other, task=task, folder="other", seed=1)
    assert one.drawn != other.drawn


def test_what_does_not_fit_is_refused(play: Play, task: PolicyTask) -> None:
    with pytest.raises(MethodError, match=r"'tested' asks prompts of up to \d\d tokens, to which up to 3 .* 32 pos"):
        play(FewShot(k=6), task=task)
    with pytest.raises(MethodError, match="k = 30 worked problems, and there are 24"):
        play(FewShot(k=30), task=task, folder="many")


def test_a_method_asks_as_many_prompts_as_there_are(play: Play, task: PolicyTask) -> None:
    class Fewer(Idle):
        def asked(self, prompts: Sequence[str]) -> list[str]:
            return list(prompts[1:])

    with pytest.raises(MethodError, match="asks 29 prompts in place of 30"):
        play(Fewer(), task=task)


class Chat(AdditionSmol):
    model_name = "qwen25-05b-instruct"
    gate = None
    rank, first_epochs, votes, rounds, max_new, pool_size = 2, 1, 1, 1, 4, 4

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return Problems(whole.demonstrations[:3], whole.responses[:3], whole.pool[:4], whole.test[:5])


class Options(Chat):
    """The same in a frame of its own, by likelihood."""

    frame = ("Question: ", "\nAnswer:")
    votes = 0

    def measures(self) -> Measures:
        return Measures(cloze=self.cloze)

    def cloze(self, public: Mapping[str, Array], indices: Array) -> Cloze:
        return Cloze(self.prompts(public, indices), [[" 100", " 101"] for _ in indices])


def bundle_of(task: AdditionSmol, folder: Path) -> BundleFolder:
    pytest.importorskip("peft")
    return write_bundle(folder, task.build(Data(data_folder())))


def test_shots_of_a_chat_are_its_earlier_turns(
    play: Play, tiny_hub_model: Path, tmp_path: Path, evaluated: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "_fit", lambda *args: None)
    task = Chat()
    bundle = bundle_of(task, tmp_path / "bundle")
    method = FewShot(k=2)
    run = play(method, task=task, bundle=bundle)
    begin, end = "<|im_start|>", "<|im_end|>\n"
    terms = {f"What is {a} + {b}?": str(a + b) for a, b in bundle.public()["terms"].astype(int).tolist()}
    asked = [shot.prompt.split(f"{begin}user\n")[1].split(end)[0] for shot in shots_of(method)]
    turns = "".join(f"{begin}user\n{words}{end}{begin}assistant\n{terms[words]}{end}" for words in asked)
    first, second = evaluated[-2:]
    head = f"{begin}system\nAnswer with a number.{end}"
    assert all(prompt.startswith(f"{head}{begin}user\nWhat is ") for prompt in first.prompts)
    assert second.prompts == [prompt.replace(head, head + turns) for prompt in first.prompts]
    # The reply's end is the token that ends a response.
    ids, _ = task.tokenizer().encode(second.prompts[:1])
    assert (ids == task.tokenizer().stop).sum() == 1 + 2 * 2 + 1
    # Round 0 is the first policy, which is that of all methods.
    idle = play(Idle(), task=task, bundle=bundle, folder="idle")
    assert run.outcome.curve[0] == idle.outcome.curve[0]


def test_a_chat_that_is_too_long_for_the_model_is_refused(play: Play, tiny_hub_model: Path, tmp_path: Path) -> None:
    task = Chat()
    bundle = bundle_of(task, tmp_path / "bundle")
    # A token a letter: 128 positions are soon full.
    with pytest.raises(MethodError, match="128 positions: it has to show less"):
        play(FewShot(k=3), task=task, bundle=bundle)


def test_shots_reach_questions_that_are_answered_by_likelihood(
    play: Play, tiny_hub_model: Path, tmp_path: Path, evaluated: list[Any]
) -> None:
    task = Options()
    bundle = bundle_of(task, tmp_path / "bundle")
    method = FewShot(k=2)
    play(method, task=task, bundle=bundle)
    (a, x), (b, y) = shots_of(method)
    assert a.startswith("Question: What is ")
    first, second = evaluated[-2:]
    assert second.cloze.options == first.cloze.options
    assert second.cloze.prompts == [f"{a}{x}\n\n{b}{y}\n\n{prompt}" for prompt in first.cloze.prompts]
    assert not any(prompt in first.cloze.prompts for prompt in second.cloze.prompts)
    assert len(unpack(second.made["greedy"])) == 5
    with pytest.raises(MethodError, match="to which up to 4 are added"):
        play(FewShot(k=3), task=task, bundle=bundle, folder="long")


class FewRooms(RoomsTiny):
    rounds, votes = 1, 2

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return Problems(whole.demonstrations, whole.responses, whole.pool[:5], whole.test[:6])


def test_an_environment_answers_the_actions_after_shots(play: Play, evaluated: list[Any]) -> None:
    bundle = build(registry.get("task", "rooms-tiny"))
    method = FewShot()
    play(method, task=FewRooms(), bundle=bundle)
    first, second = evaluated
    head = "?".join(prompt + response for prompt, response in shots_of(method))
    assert second.prompts == [f"{head}?{prompt}" for prompt in first.prompts]
    for one in (first, second):
        texts = [*unpack(one.made["greedy"]), *unpack(one.made["votes"])]
        assert len(texts) == 6 * 3
        # Whatever else it writes, every action is answered.
        assert not any(re.search(f"[{ROOMS}{BACK}][^{ANSWERS}]", text.removesuffix(CUT_OFF)) for text in texts)


def test_every_policy_task_grants_shots_or_says_why_not() -> None:
    tasks = [entry for entry in registry.entries("task").values() if entry.protocol == "policy" and entry.module]
    lacking = [entry.name for entry in tasks if missing_needs(["shots"], entry.options["grants"])]
    assert "judge-tiny" in lacking
    for name in lacking:
        assert "There are no `shots`: " in " ".join((registry.get("task", name).load().__doc__ or "").split())


@pytest.mark.parametrize("name", ["arithmetic-tiny", "rooms-tiny"])
def test_the_default_fits_where_it_is_granted(name: str) -> None:
    """The three longest demonstrations, the longest prompt and the longest response."""
    entry = registry.get("task", name)
    bundle, task = build(entry), entry.load()()
    problems = task.problems(bundle, 0)
    prompts = task.prompts(bundle.public(), problems.demonstrations)
    shots = sorted(map(Example, prompts, problems.responses), key=lambda one: -len("".join(one)))[: FewShot().k]
    longest = max(task.prompts(bundle.public(), problems.test), key=len)
    asked = task.grants().shots.preceded(longest, shots)
    assert task.tokenizer().encode([asked])[1][0] == len(asked)
    assert len(asked) + task.max_new <= task.model().config.max_position_embeddings
