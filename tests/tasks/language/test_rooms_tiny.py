"""The text world: its answers by hand, the expert, what is held out, and an environment that never lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.prepare import build
from selfbench.suite.pretrain import load_weights
from selfbench.suite.protocols.language_model import CUT_OFF, join
from selfbench.tasks.language.rooms_tiny import (
    DEMONSTRATIONS,
    LIMIT,
    POOL,
    TEST,
    WEIGHTS,
    WEIGHTS_SHA256,
    RoomsTiny,
    World,
    all_worlds,
    episode,
    replayed,
    solved,
)

TASK = RoomsTiny()
WORLD = World("bdafce", "a", "e", "c")
"""b d a f c e in a ring: e is next to b and c."""


@pytest.fixture(scope="module")
def bundle() -> BundleFolder:
    return build(registry.get("task", "rooms-tiny"))


@pytest.mark.parametrize(("actions", "answers"), [
    ("fce", ".K*"), ("dbe", "..L"), ("dbef", "..LX"), ("dafce", "...K*"), ("c", "X"), ("a", "X"), ("fcfce", ".K..*"),
    # Put back: the key is lost again, a step that led nowhere too, and at the beginning there is nothing to put back.
    ("fcwce", ".KOK*"), ("fcwwe", ".KOOX"), ("wwfce", "OO.K*"), ("cwfce", "XO.K*"), ("fcef", ".K*"),
])  # fmt: skip
def test_answers_by_hand(actions: str, answers: str) -> None:
    assert replayed(WORLD, actions) == answers
    assert TASK.accepts(actions, WORLD.written()) == (answers.endswith("*") and len(answers) == len(actions))


def test_each_reaction_is_that_of_the_whole_episode() -> None:
    for actions in ("fcwce", "dbefwwa", "w" * LIMIT):
        text = ""
        for at, action in enumerate(actions):
            answer, over = TASK.react(WORLD.written(), text + action)
            text += action + answer
            assert text[1::2] == replayed(WORLD, actions[: at + 1])
            assert over == (answer == "*" or at == LIMIT - 1)
    assert len(replayed(WORLD, "w" * 99)) == LIMIT


def test_the_expert_reaches_every_goal_without_knowing_the_key() -> None:
    ring = "bdafce"
    told: dict[str, str] = {}
    for start, goal, key in itertools.permutations(ring, 3):
        world = World(ring, start, goal, key)
        text = episode(world)
        assert TASK.accepts(text[::2], world.written())
        assert len(text) // 2 <= 7 < LIMIT
        # Until it finds the key, what it does depends on what was shown and answered alone.
        before = text.partition("K")[0]
        for size in range(0, len(before), 2):
            seen = f"{start}{goal}{before[:size]}"
            assert told.setdefault(seen, before[size]) == before[size]
    assert solved(World(ring, "a", "e", "c")) == "dbdafce"
    assert solved(World(ring, "d", "e", "c")) == "bdafce"


def test_the_words_of_the_task() -> None:
    assert WORLD.written() == "bdafce:a>e:c"
    assert World.read(WORLD.written()) == WORLD
    assert TASK.answer("f.cK e*") is None
    assert TASK.answer("f.cKe*") == "fce"
    assert [TASK.answer(text) for text in ("", "f", "f.c", "ff.", "f..", "f.cK" + CUT_OFF, "f.\n")] == [None] * 7
    assert TASK.steps("f.cKe*") == ["f.", "cK", "e*"]
    assert TASK.steps("f.c") == ["f.", "c"]
    assert TASK.critic("bdafce:a>e=", "f.cK" + CUT_OFF) == "bdafce:a>e=f.c?"
    assert TASK.feedback([True]) == "+"
    assert TASK.feedback([True, False]) == "-"
    assert [TASK.approves(text) for text in ("+", "-", "", "+-", "…")] == [True, False, None, None, None]
    assert TASK.scores(["fce", None, "dbe", "fce"], [WORLD.written()] * 3 + ["bdafce:a>e:d"])["accuracy"] == 0.25


def test_prompts_differ_and_worlds_stay_with_the_scorer(bundle: BundleFolder) -> None:
    worlds = all_worlds()
    assert len({world.written()[:10] for world in worlds}) == len(worlds)
    problems = [TASK.problems(bundle, seed) for seed in range(2)]
    assert {len(one.demonstrations) for one in problems} == {DEMONSTRATIONS}
    assert {len(one.pool) for one in problems} == {POOL}
    assert {len(one.test) for one in problems} == {TEST}
    assert problems[0].pool.tolist() != problems[1].pool.tolist()
    assert bundle.public().keys() == {"shown"}
    chosen = np.arange(5)
    assert TASK.worlds(bundle.private(), chosen) == [world.written() for world in worlds[:5]]
    assert TASK.prompts(bundle.public(), chosen) == [f"{world.written()[:10]}=" for world in worlds[:5]]
    longest = join(TASK.tokenizer(), ["bdafce:a>e="], ["wO" * LIMIT])
    assert longest.lengths[0] < 128
    assert TASK.max_new >= 2 * LIMIT


def test_what_the_environment_wrote_is_neither_scored_nor_trained_on() -> None:
    observed = TASK.tokenizer().encode(list(TASK.observations))[0].ravel().tolist()
    sequences = join(TASK.tokenizer(), ["bdafce:a>e=", "bdafce:a>e="], ["f.cKe*", "dX"], observed=observed)
    # Three actions and the stop symbol, one and the stop symbol.
    assert sequences.scored().tolist() == [4, 2]
    _, response = sequences.batch(np.arange(2), torch.device("cpu"))
    assert response.sum(dim=1).tolist() == [4, 2]
    assert response[0, 11:].tolist() == [True, False, True, False, True, False, True]


def test_the_first_policy_is_the_kept_one_and_its_error_is_declared(bundle: BundleFolder) -> None:
    low, high = TASK.clean_error
    assert low < bundle.facts["clean_error"] < high
    kept = load_weights(WEIGHTS, WEIGHTS_SHA256)
    loaded = bundle.model()
    assert all((loaded[name] == value.float()).all() for name, value in kept.items())
