"""Two operations on three numbers by a small language model that writes code: what it cannot compute, it has computed.

The problems are in reverse Polish notation, so that the order of operations has to be worked out; a response takes them
one by one, each as a line of code behind which its output stands. Everything is made at run time from a seed. The first
policy is part of the task, as that of `arithmetic-tiny`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.pretrain import load_weights, reproducible
from ...suite.protocols.generation import OwnSampler, generate
from ...suite.protocols.interpreter import Interpreter
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import PolicyTask, Problems
from ...suite.protocols.policy_grants import Code, Grants, Hints, Solutions, Steps, Verifier
from ...suite.protocols.policy_measures import Measures
from ...suite.protocols.sampling import Sampling
from ...suite.protocols.sequences import join
from ...suite.protocols.tokens import CUT_OFF, CharTokenizer
from ...suite.registry import register_task
from ...suite.sandbox import Limits
from ...suite.seeds import rng
from .small_model import small_llama, train_epochs

if TYPE_CHECKING:
    from ...suite.data import Data

SMALLEST, LARGEST = 2, 99
PROBLEMS, DEMONSTRATIONS, TEST, POOL = 4000, 600, 400, 600
OPERATIONS = "+-*"
VOCABULARY = "\0\n0123456789+-* =:;"
"""Padding, stop, then what is written: `:` ends a line of code, `;` ends its output."""
CODE = re.compile(r"-?[0-9]{1,6}[-+*]-?[0-9]{1,6}")
"""Of powers no number of digits would be enough."""
OUTPUT = re.compile(r"-?[0-9]{1,7}")
LIMITS = Limits(cpu_seconds=1, memory_mb=64, output_bytes=256)
DATA_SEED = 0
BASE_SEED, BASE_EPOCHS, BASE_BATCH, BASE_LR = 1, 70, 64, 4e-3
WEIGHTS = Path(__file__).parent / "weights" / "arithmetic-tiny-code.safetensors"
WEIGHTS_SHA256 = "68312c2db5cb1ebd03c45efa5751f4db0454f2212b1336bf5a561e1a8834969d"
_PART = re.compile(r"([^:;]*):(?:([^:;]*);)?")


@register_task(
    "arithmetic-tiny-code",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two operations on three numbers by a small language model that writes code",
    budget={"currency": "tokens", "limit": 6000000, "wall_seconds": 900.0},
    data=(),
    grants=("verifier", "answers", "code", "steps", "solutions"),
    bundle="arithmetic-tiny-code",
)
class ArithmeticTinyCode(PolicyTask):
    """A prompt is `47 8 5*+=`, its worked response `8*5:40;47+40:87;`: code and what it prints, twice.

    The answer is what a response's last line of code prints when the harness runs it; what the response says that it
    printed does not count. A policy that writes a response at a stretch has to compute the first output by itself, for
    the second line is made of it; one that has the interpreter run the first line (`code`) has not. Of 4,000 problems
    of numbers from 2 to 99, 600 are demonstrations, 400 the test, and of the others the seed draws a pool of 600. There
    is no majority vote, for every sample would have to be run. There are no `shots`: a single worked problem before it,
    of up to 37 symbols, and a prompt leave of the model's 64 positions too few for a response of 34.
    """

    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-3, weight_decay=0.3, beta2=0.99, batch_size=64, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 4
    max_new: ClassVar[int] = 34
    votes: ClassVar[int] = 0
    step_ends: ClassVar[str] = ":"
    rows: ClassVar[int] = 2048
    clean_error: ClassVar[tuple[float, float]] = (0.96, 1.0)

    def build(self, data: Data) -> Bundle:
        """Public arrays `numbers` int64 (4000, 3), `operations` (4000, 2), `shapes` (4000,); private `values` (4000,).

        Measures the first policy, which answers at a stretch.
        """
        public = all_problems()
        model = self.model()
        model.load_state_dict(load_weights(WEIGHTS, WEIGHTS_SHA256))
        values = values_of(public)
        test = np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST)
        with reproducible(0):
            sampler = OwnSampler(model.eval(), self.tokenizer(), self.rows)
            made = generate(
                sampler, self.tokenizer(), self.prompts(public, test), 1, Sampling(0.0), max_new=self.max_new,
                generator=torch.Generator(),
            )  # fmt: skip
        found = Interpreter(self).answers([response for [response] in made])
        wrong = [answer != str(value) for answer, value in zip(found, values[test].tolist(), strict=True)]
        return Bundle(
            public=public,
            private={"values": values},
            model=model.state_dict(),
            facts={"clean_error": float(np.mean(wrong)), "parameters": sum(p.numel() for p in model.parameters())},
        )

    def model(self) -> nn.Module:
        return small_llama(len(VOCABULARY))

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(VOCABULARY)

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        others = np.arange(DEMONSTRATIONS + TEST, PROBLEMS)
        shown = np.arange(DEMONSTRATIONS)
        return Problems(
            demonstrations=shown,
            responses=responses_to(bundle.public(), shown),
            pool=np.sort(rng(seed, "arithmetic-tiny-code", "pool").permutation(others)[:POOL]),
            test=np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST),
        )

    def prompts(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return [
            f"{a} {b}{first}{c}{second}=" if early else f"{a} {b} {c}{first}{second}="
            for (a, b, c), (first, second), early in _read(public, indices)
        ]

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(64),
            answers=Hints(self.hinted),
            code=Code(self.program, self.observed, LIMITS),
            steps=Steps(self.step_ends),
            solutions=Solutions(self.solutions),
        )

    def measures(self) -> Measures:
        return Measures(groups=self.groups)

    def program(self, response: str) -> str | None:
        """A line that prints for every line of code; None where a line is none, or another thing stands in between."""
        text = response.removesuffix(CUT_OFF)
        lines = [line for line, _ in _PART.findall(text)]
        if not lines or _PART.sub("", text) or not all(CODE.fullmatch(line) for line in lines):
            return None
        return "\n".join(f"print({line})" for line in lines)

    def answer(self, response: str) -> str | None:
        """The last line that a program printed."""
        return response.split()[-1] if response.strip() else None

    def observed(self, response: str, output: str) -> str | None:
        text, last = response.removesuffix(CUT_OFF), self.answer(output)
        if not response.endswith(f":{CUT_OFF}") or last is None or not OUTPUT.fullmatch(last):
            return None
        return f"{text}{last};{CUT_OFF}"

    def hinted(self, prompt: str, answer: str) -> str:
        """`47 8 5*+;87=`"""
        return f"{prompt[:-1]};{answer}="

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [str(value) for value in private["values"][indices].tolist()]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        """Worked out from the problems, which are public here."""
        return responses_to(all_problems(), indices)

    def groups(self, prompts: Sequence[str]) -> list[str]:
        """By the operation that comes first."""
        names = {"+": "sum first", "-": "difference first", "*": "product first"}
        return [next(names[symbol] for symbol in prompt if symbol in names) for prompt in prompts]


def all_problems() -> dict[str, Array]:
    """Different problems in a random order, the same for all seeds: numbers (N, 3), the two operations (N, 2) in the
    order in which they are done, and whether the first one is of the first two numbers (N,)."""
    draw = rng(DATA_SEED, "arithmetic-tiny-code", "problems")
    n = 2 * PROBLEMS
    rows = np.concatenate(
        [draw.integers(SMALLEST, LARGEST + 1, (n, 3)), draw.integers(0, 3, (n, 2)), draw.integers(0, 2, (n, 1))], axis=1
    )
    _, first = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(first)[:PROBLEMS]]
    return {"numbers": rows[:, :3], "operations": rows[:, 3:5], "shapes": rows[:, 5]}


def _read(public: Mapping[str, Array], indices: Array) -> list[tuple[list[int], list[str], bool]]:
    numbers, operations, shapes = (public[name][indices].tolist() for name in ("numbers", "operations", "shapes"))
    return [
        (own, [OPERATIONS[at] for at in both], bool(shape))
        for own, both, shape in zip(numbers, operations, shapes, strict=True)
    ]


def _compute(a: int, symbol: str, b: int) -> int:
    return a + b if symbol == "+" else a - b if symbol == "-" else a * b


def responses_to(public: Mapping[str, Array], indices: Array) -> list[str]:
    """The worked responses."""
    found = []
    for (a, b, c), (first, second), early in _read(public, indices):
        one = f"{a}{first}{b}" if early else f"{b}{first}{c}"
        value = _compute(a, first, b) if early else _compute(b, first, c)
        two = f"{value}{second}{c}" if early else f"{a}{second}{value}"
        last = _compute(value, second, c) if early else _compute(a, second, value)
        found.append(f"{one}:{value};{two}:{last};")
    return found


def values_of(public: Mapping[str, Array]) -> Array:
    """The true answers int64 (N,)."""
    responses = responses_to(public, np.arange(len(public["shapes"])))
    return np.array([int(response[:-1].rpartition(":")[2]) for response in responses])


def train_base() -> nn.Module:
    """The training that made the kept weights, on the demonstrations alone."""
    task = ArithmeticTinyCode()
    shown = np.arange(DEMONSTRATIONS)
    public = all_problems()
    sequences = join(task.tokenizer(), task.prompts(public, shown), responses_to(public, shown))
    with reproducible(BASE_SEED):
        draw = rng(BASE_SEED, "arithmetic-tiny-code", "base")
        return train_epochs(task.model(), sequences, task.recipe, BASE_LR, BASE_EPOCHS, BASE_BATCH, draw)
