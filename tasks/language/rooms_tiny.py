"""A small text world, in which a small language model looks for a key: an environment answers each of its steps.

Everything is made at run time from a seed, so that nothing can be contaminated. The first policy is part of the task:
its weights were trained once by `train_base` and are kept beside this file, for the same training on another kind of
processor rounds differently.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.pretrain import load_weights, reproducible
from ...suite.protocols.generation import OwnSampler, generate
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import PolicyTask, Problems
from ...suite.protocols.policy_grants import Critique, Environment, Grants, Shots, Solutions, Steps, Verifier
from ...suite.protocols.policy_grants.shots import in_a_row
from ...suite.protocols.sampling import Sampling
from ...suite.protocols.sequences import join
from ...suite.protocols.tokens import CUT_OFF, CharTokenizer
from ...suite.registry import register_task
from ...suite.seeds import rng
from .small_model import small_llama, train_epochs

if TYPE_CHECKING:
    from ...suite.data import Data

ROOMS, COLUMNS = "abcdefghijkl", 4
"""Twelve rooms, row by row; those beside and above each other are connected. The same building in all worlds."""
BACK = "w"
EMPTY, KEY, NO_WAY, LOCKED, BEFORE, REACHED = ".KXLO*"
"""What the environment answers to an action."""
ANSWERS = EMPTY + KEY + NO_WAY + LOCKED + BEFORE + REACHED
LIMIT = 16
"""Actions after which an episode is over."""
DEMONSTRATIONS, TEST, POOL = 120, 300, 600
VOCABULARY = "\0\n" + ROOMS + BACK + ":>=?+-" + ANSWERS
_STEP = re.compile(rf"[{ROOMS}{BACK}][{re.escape(ANSWERS)}]?|.", re.S)
_EPISODE = re.compile(rf"(?:[{ROOMS}{BACK}][{re.escape(ANSWERS)}])+")
DATA_SEED = 0
BASE_SEED, BASE_EPOCHS, BASE_BATCH, BASE_LR = 1, 120, 32, 2e-3
WEIGHTS = Path(__file__).parent / "weights" / "rooms-tiny.safetensors"
WEIGHTS_SHA256 = "91c758925d57144217a5f849d421788262560bbf6b4a6846ef9dc164b1012fc6"


class World(NamedTuple):
    """The rooms to start in, of the key, and to reach, which is locked."""

    start: str
    key: str
    goal: str

    @classmethod
    def read(cls, text: str) -> World:
        """Of the form of `written`."""
        return cls(text[0], text[2], text[4])

    def written(self) -> str:
        """`a:f>k`"""
        return f"{self.start}:{self.key}>{self.goal}"


def neighbours(room: str) -> str:
    """The rooms next to one, in their order."""
    row, column = divmod(ROOMS.index(room), COLUMNS)
    places = [(row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)]
    rows = len(ROOMS) // COLUMNS
    return "".join(ROOMS[r * COLUMNS + c] for r, c in places if 0 <= r < rows and 0 <= c < COLUMNS)


def replayed(world: World, actions: str) -> str:
    """The environment's answers to `actions`, one each, up to the one that ends the episode.

    A room's name goes there from the room next to it: into the locked one with the key alone, which is taken where it
    lies. `w` puts everything back to where it was before the last step that was not put back.
    """
    here, carried = world.start, False
    before: list[tuple[str, bool]] = []
    answers = ""
    for action in actions[:LIMIT]:
        if action == BACK:
            if before:
                here, carried = before.pop()
            answers += BEFORE
            continue
        before.append((here, carried))
        if action not in neighbours(here):
            answers += NO_WAY
        elif action == world.goal:
            answers += REACHED if carried else LOCKED
        else:
            here = action
            answers += KEY if here == world.key and not carried else EMPTY
            carried = carried or here == world.key
        if answers[-1] == REACHED:
            break
    return answers


def solved(world: World) -> str:
    """The actions of an expert: a shortest way to the key around the locked room, then one to the goal; of equally
    short ones the first in the order of rooms."""
    return shortest(world.start, world.key, world.goal) + shortest(world.key, world.goal)


def shortest(start: str, end: str, without: str = "") -> str:
    """The rooms of a shortest way after its start, breadth first."""
    ways = {start: ""}
    for here in (queue := [start]):
        for room in neighbours(here):
            if room not in ways and room != without:
                ways[room] = ways[here] + room
                queue.append(room)
    return ways[end]


@register_task(
    "rooms-tiny",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="A small language model looks for a key and a locked room in a text world",
    budget={"currency": "tokens", "limit": 3000000, "wall_seconds": 300.0},
    data=(),
    grants=("verifier", "environment", "shots", "steps", "solutions"),
)
class RoomsTiny(PolicyTask):
    """A prompt is `a:f>k=`: the room to start in, that of the key, and one to reach, which is locked.

    A step of a response is an action, and what the environment answers: `b.` goes to the room `b`, where nothing is;
    `.` is an empty room, `K` that of the key, which is taken, `X` no way there, `L` a locked room without the key, `*`
    the end of a good episode. `w` puts the world back to where it was before the last step, answered by `O`. An episode
    ends after 16 actions at the latest. Which rooms are connected, three rows of four in all worlds, is not shown. A
    response counts when its actions, replayed, reach the goal.

    The environment runs where the answers are kept. 1,320 worlds are divided once: 120 demonstrations by an expert
    (`solved`), 300 for the test, and others, of which the seed draws a pool of 600. `critic` shows a response up to its
    last action, without the answer to it, and `feedback` is `+` or `-`.
    """

    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-3, weight_decay=0.3, beta2=0.99, batch_size=64, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 4
    max_new: ClassVar[int] = 2 * LIMIT + 1
    votes: ClassVar[int] = 3
    step_ends: ClassVar[str] = ROOMS + BACK
    rows: ClassVar[int] = 2048
    clean_error: ClassVar[tuple[float, float]] = (0.58, 0.67)

    def build(self, data: Data) -> Bundle:
        """Public and private `shown` uint8 (1320, 6), the prompts, which are the worlds. Measures the first policy."""
        worlds = all_worlds()
        public = {"shown": np.array([list(f"{one.written()}=".encode()) for one in worlds], np.uint8)}
        private = public
        model = self.model()
        model.load_state_dict(load_weights(WEIGHTS, WEIGHTS_SHA256))
        test = np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST)
        with reproducible(0):
            played = played_greedily(self, model.eval(), [worlds[at] for at in test.tolist()])
        error = 1.0 - self.scores([self.answer(text) for text in played], self.answers(private, test))["accuracy"]
        parameters = sum(value.numel() for value in model.parameters())
        return Bundle(public, private, model.state_dict(), {"clean_error": error, "parameters": parameters})

    def model(self) -> nn.Module:
        return small_llama(len(VOCABULARY), positions=128)

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(VOCABULARY)

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        shown = np.arange(DEMONSTRATIONS)
        others = np.arange(DEMONSTRATIONS + TEST, len(bundle.public()["shown"]))
        return Problems(
            demonstrations=shown,
            responses=self.solutions(bundle.private(), shown),
            pool=np.sort(rng(seed, "rooms-tiny", "pool").permutation(others)[:POOL]),
            test=np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST),
        )

    def prompts(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return [bytes(row).decode() for row in public["shown"][indices]]

    def answer(self, response: str) -> str | None:
        """The actions of an episode."""
        return response[::2] if _EPISODE.fullmatch(response) else None

    def steps(self, response: str) -> list[str]:
        """Each action with its answer."""
        return _STEP.findall(response)

    def grants(self) -> Grants:
        critique = Critique(self.critic, self.feedback, self.approves)
        return Grants(
            verifier=Verifier(256),
            environment=Environment(ANSWERS, self.worlds, self.react, BACK, critique),
            shots=Shots(functools.partial(in_a_row, separator="?")),
            steps=Steps(self.step_ends),
            solutions=Solutions(self.solutions),
        )

    def critic(self, prompt: str, response: str) -> str:
        """`a:f>k=b.f?`"""
        return f"{prompt}{response.removesuffix(CUT_OFF).rstrip(ANSWERS)}?"

    def feedback(self, right: Sequence[bool]) -> str:
        return "+" if all(right) else "-"

    def approves(self, feedback: str) -> bool | None:
        return {"+": True, "-": False}.get(feedback)

    def react(self, world: str, response: str) -> tuple[str, bool]:
        actions = response.translate({ord(symbol): None for symbol in ANSWERS})
        answers = replayed(World.read(world), actions)
        return answers[-1], answers[-1] == REACHED or len(actions) >= LIMIT

    def accepts(self, answer: str, truth: str) -> bool:
        answers = replayed(World.read(truth), answer)
        return len(answers) == len(answer) and answers[-1] == REACHED

    def worlds(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """`a:f>k`"""
        return [prompt[:-1] for prompt in self.prompts(private, indices)]

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """The worlds, in which actions are replayed."""
        return self.worlds(private, indices)

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [episode(World.read(world)) for world in self.worlds(private, indices)]


def episode(world: World) -> str:
    """The expert's response."""
    actions = solved(world)
    return "".join(action + answer for action, answer in zip(actions, replayed(world, actions), strict=True))


def all_worlds() -> list[World]:
    """Every start, key and goal, in an order that is the same for all seeds."""
    worlds = [World(*rooms) for rooms in itertools.permutations(ROOMS, 3)]
    return [worlds[at] for at in rng(DATA_SEED, "rooms-tiny", "worlds").permutation(len(worlds)).tolist()]


def played_greedily(task: RoomsTiny, model: nn.Module, worlds: Sequence[World]) -> list[str]:
    """The greedy responses of `model` to the prompts of `worlds`."""
    tokenizer = task.tokenizer()
    sampler = OwnSampler(model, tokenizer, task.rows)
    ends, observed = (tokenizer.encode(list(symbols))[0].ravel().tolist() for symbols in (task.step_ends, ANSWERS))
    prompts = [f"{world.written()}=" for world in worlds]
    texts, going = [CUT_OFF] * len(worlds), list(range(len(worlds)))
    while going:
        made = generate(
            sampler, tokenizer, [prompts[at] for at in going], 1, Sampling(0.0), max_new=task.max_new,
            generator=torch.Generator(), begun=[texts[at] for at in going], ends=ends,
            never=[*observed, tokenizer.stop],
        )  # fmt: skip
        for at, found in zip(going, made, strict=True):
            text = found[0].removesuffix(CUT_OFF) if found else texts[at]
            acted = bool(found) and text[-1] in task.step_ends
            answer, over = task.react(worlds[at].written(), text) if acted else ("", True)
            texts[at] = text + answer + ("" if over else CUT_OFF)
        going = [at for at in going if texts[at].endswith(CUT_OFF)]
    return texts


def train_base() -> nn.Module:
    """The training that made the kept weights, on the demonstrations alone."""
    task = RoomsTiny()
    worlds = all_worlds()[:DEMONSTRATIONS]
    observed = task.tokenizer().encode(list(ANSWERS))[0].ravel().tolist()
    sequences = join(
        task.tokenizer(), [f"{world.written()}=" for world in worlds], [episode(world) for world in worlds],
        observed=observed,
    )  # fmt: skip
    with reproducible(BASE_SEED):
        draw = rng(BASE_SEED, "rooms-tiny", "base")
        return train_epochs(task.model(), sequences, task.recipe, BASE_LR, BASE_EPOCHS, BASE_BATCH, draw)
