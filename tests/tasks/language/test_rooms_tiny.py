"""The text world: its answers by hand, the expert, what is held out, and an environment that never lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.pretrain import load_weights
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.rooms_tiny import (
    ANSWERS,
    DEMONSTRATIONS,
    LIMIT,
    POOL,
    ROOMS,
    TEST,
    WEIGHTS,
    WEIGHTS_SHA256,
    RoomsTiny,
    World,
    all_worlds,
    episode,
    neighbours,
    replayed,
    solved,
)

TASK = RoomsTiny()
WORLD = World("a", "f", "k")
"""a b c d above e f g h above i j k l: the key is in f, the goal is k."""


@pytest.fixture(scope="module")
def bundle() -> BundleFolder:
    return build(registry.get("task", "rooms-tiny"))


@pytest.mark.parametrize(("actions", "answers"), [
    ("bfgk", ".K.*"), ("efjk", ".K.*"), ("bcgk", "...L"), ("bcgkf", "...LK"), ("f", "X"), ("a", "X"),
    ("bfbfgk", ".K...*"),
    # Put back: the key is lost again, a step that led nowhere too, and at the beginning there is nothing to put back.
    ("bfwfgk", ".KOK.*"), ("bfwgk", ".KOXX"), ("wwbfgk", "OO.K.*"), ("fwbfgk", "XO.K.*"), ("bfgkg", ".K.*"),
])  # fmt: skip
def test_answers_by_hand(actions: str, answers: str) -> None:
    assert replayed(WORLD, actions) == answers
    assert TASK.accepts(actions, WORLD.written()) == (answers.endswith("*") and len(answers) == len(actions))


def test_each_reaction_is_that_of_the_whole_episode() -> None:
    for actions in ("bfwfgk", "bcgkwwa", "w" * LIMIT):
        text = ""
        for at, action in enumerate(actions):
            answer, over = TASK.react(WORLD.written(), text + action)
            text += action + answer
            assert text[1::2] == replayed(WORLD, actions[: at + 1])
            assert over == (answer == "*" or at == LIMIT - 1)
    assert len(replayed(WORLD, "w" * 99)) == LIMIT


def slow_distance(start: str, end: str, without: str = "") -> int:
    """By relaxing until nothing changes."""
    rooms = [room for room in ROOMS if room != without]
    far = {room: 0 if room == start else 99 for room in rooms}
    for _ in rooms:
        for one, other in itertools.product(rooms, rooms):
            row, column = (
                abs(a - b) for a, b in zip(divmod(ROOMS.index(one), 4), divmod(ROOMS.index(other), 4), strict=True)
            )
            if row + column == 1:
                far[one] = min(far[one], far[other] + 1)
    return far[end]


def test_the_expert_takes_a_shortest_way_by_the_key() -> None:
    for world in all_worlds()[:200]:
        text = episode(world)
        assert TASK.accepts(text[::2], world.written())
        expected = slow_distance(world.start, world.key, world.goal) + slow_distance(world.key, world.goal)
        assert len(text) // 2 == expected < LIMIT
        assert not set("XLO") & set(text)
    assert solved(WORLD) == "bfgk"
    assert neighbours("f") == "begj"
    assert neighbours("a") == "be"


def test_the_words_of_the_task() -> None:
    assert WORLD.written() == "a:f>k"
    assert World.read(WORLD.written()) == WORLD
    assert TASK.answer("b.fKg.k*") == "bfgk"
    assert [TASK.answer(text) for text in ("", "b", "b.f", "bb.", "b..", "b.fK" + CUT_OFF, "b.\n", "b.fK -*")] == [
        None
    ] * 8
    assert TASK.steps("b.fKg.k*") == ["b.", "fK", "g.", "k*"]
    assert TASK.steps("b.f") == ["b.", "f"]
    assert TASK.critic("a:f>k=", "b.fK" + CUT_OFF) == "a:f>k=b.f?"
    assert TASK.feedback([True]) == "+"
    assert TASK.feedback([True, False]) == "-"
    assert [TASK.approves(text) for text in ("+", "-", "", "+-", "…")] == [True, False, None, None, None]
    assert TASK.scores(["bfgk", None, "bcgk", "bfgk"], [WORLD.written()] * 3 + ["a:j>k"])["accuracy"] == 0.25


def test_worlds_are_divided(bundle: BundleFolder) -> None:
    worlds = all_worlds()
    assert len({world.written() for world in worlds}) == len(worlds) == 12 * 11 * 10
    problems = [TASK.problems(bundle, seed) for seed in range(2)]
    assert {len(one.demonstrations) for one in problems} == {DEMONSTRATIONS}
    assert {len(one.pool) for one in problems} == {POOL}
    assert {len(one.test) for one in problems} == {TEST}
    assert problems[0].pool.tolist() != problems[1].pool.tolist()
    assert bundle.public().keys() == {"shown"}
    chosen = np.arange(5)
    assert TASK.worlds(bundle.private(), chosen) == [world.written() for world in worlds[:5]]
    assert TASK.prompts(bundle.public(), chosen) == [f"{world.written()}=" for world in worlds[:5]]
    longest = join(TASK.tokenizer(), ["a:f>k="], ["wO" * LIMIT])
    assert longest.lengths[0] < 128
    assert TASK.max_new >= 2 * LIMIT


def test_what_the_environment_wrote_is_neither_scored_nor_trained_on() -> None:
    observed = TASK.tokenizer().encode(list(ANSWERS))[0].ravel().tolist()
    sequences = join(TASK.tokenizer(), ["a:f>k=", "a:f>k="], ["b.fKg.k*", "dX"], observed=observed)
    # Four actions and the stop symbol, one and the stop symbol.
    assert sequences.scored().tolist() == [5, 2]
    _, response = sequences.batch(np.arange(2), torch.device("cpu"))
    assert response.sum(dim=1).tolist() == [5, 2]
    assert response[0, 6:].tolist() == [True, False] * 4 + [True]


def test_the_first_policy_is_the_kept_one_and_its_error_is_declared(bundle: BundleFolder) -> None:
    low, high = TASK.clean_error
    assert low < bundle.facts["clean_error"] < high
    kept = load_weights(WEIGHTS, WEIGHTS_SHA256)
    loaded = bundle.model()
    assert all((loaded[name] == value.float()).all() for name, value in kept.items())
