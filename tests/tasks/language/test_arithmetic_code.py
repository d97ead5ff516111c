"""Problems in reverse Polish notation: what is held out, code and outputs in responses, the first policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.pretrain import load_weights
from selfbench.suite.protocols.interpreter import Interpreter
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.sandbox import Sandbox, SandboxError
from selfbench.tasks.language.arithmetic_code import (
    DEMONSTRATIONS,
    POOL,
    PROBLEMS,
    TEST,
    WEIGHTS,
    WEIGHTS_SHA256,
    ArithmeticTinyCode,
    all_problems,
    responses_to,
    values_of,
)

TASK = ArithmeticTinyCode()


@pytest.fixture(scope="module", autouse=True)
def _safe() -> None:
    try:
        assert Sandbox().means
    except SandboxError as error:
        pytest.skip(f"this kernel cannot hold code: {error}")


@pytest.fixture(scope="module")
def bundle() -> BundleFolder:
    return build(registry.get("task", "arithmetic-tiny-code"))


def polish(prompt: str) -> int:
    """The value of a prompt, by a stack."""
    stack: list[int] = []
    number = ""
    for symbol in prompt:
        if symbol.isdigit():
            number += symbol
            continue
        if number:
            stack.append(int(number))
            number = ""
        if symbol in "+-*":
            b, a = stack.pop(), stack.pop()
            stack.append({"+": a + b, "-": a - b, "*": a * b}[symbol])
    assert prompt.endswith("=")
    [value] = stack
    return value


def test_problems_and_their_values() -> None:
    public = all_problems()
    prompts = TASK.prompts(public, np.arange(PROBLEMS))
    assert len(set(prompts)) == PROBLEMS
    assert values_of(public).tolist() == [polish(prompt) for prompt in prompts]
    kinds = np.array(TASK.groups(prompts))
    assert all(0.3 < (kinds == name).mean() < 0.37 for name in ("sum first", "difference first", "product first"))


@pytest.mark.parametrize(
    ("numbers", "operations", "shape", "prompt", "response"),
    [
        ((47, 8, 5), "*+", 0, "47 8 5*+=", "8*5:40;47+40:87;"),
        ((47, 8, 5), "*+", 1, "47 8*5+=", "47*8:376;376+5:381;"),
        ((2, 99, 98), "--", 0, "2 99 98--=", "99-98:1;2-1:1;"),
        ((2, 99, 98), "-*", 1, "2 99-98*=", "2-99:-97;-97*98:-9506;"),
        ((2, 3, 99), "-*", 0, "2 3 99-*=", "3-99:-96;2*-96:-192;"),
    ],
)
def test_worked_responses_by_hand(
    numbers: tuple[int, ...], operations: str, shape: int, prompt: str, response: str
) -> None:
    public = {"numbers": np.array([numbers]), "operations": np.array([["+-*".index(one) for one in operations]]),
              "shapes": np.array([shape])}  # fmt: skip
    one = np.arange(1)
    assert TASK.prompts(public, one) == [prompt]
    assert responses_to(public, one) == [response]
    assert TASK.program(response) == "\n".join(f"print({part.split(':')[0]})" for part in response[:-1].split(";"))


def test_worked_responses_fit_and_print_their_answers() -> None:
    public = all_problems()
    responses = responses_to(public, np.arange(PROBLEMS))
    joined = join(TASK.tokenizer(), TASK.prompts(public, np.arange(PROBLEMS)), responses)
    assert (joined.lengths - joined.starts).max() <= TASK.max_new
    assert joined.lengths.max() + len("-970299;") < 64
    some = np.arange(0, PROBLEMS, 100)
    assert Interpreter(TASK).answers([responses[at] for at in some]) == [str(v) for v in values_of(public)[some]]


@pytest.mark.parametrize(
    "text",
    ["", "40", "8*5", "8*5;", ":", ";", "8*5:40;47+40", "8*5:40;;", "8*5:40:87;", "x:1;", "8**5:1;", "8*5+1:41;",
     "8:8;", "8 *5:40;", "*5:40;", "8*:40;", "1234567*2:1;", "-:1;", "8/5:1;"],
)  # fmt: skip
def test_what_is_not_of_the_form_is_no_program(text: str) -> None:
    assert TASK.program(text) is None


def test_outputs_that_a_response_claims_do_not_count() -> None:
    found = Interpreter(TASK).answers(["8*5:41;47+41:0;", "8*5:", "8*5:40;47+40:", "8*5:40;" + CUT_OFF, "07+1:8;"])
    assert found == ["88", "40", "87", None, None]


def test_outputs_are_written_behind_code() -> None:
    assert TASK.observed("8*5:" + CUT_OFF, "40\n") == "8*5:40;" + CUT_OFF
    assert TASK.observed("8*5:40;3-40:" + CUT_OFF, "40\n-37\n") == "8*5:40;3-40:-37;" + CUT_OFF
    for text, output in (("8*5:", "40"), ("8*5" + CUT_OFF, "40"), ("8*5:40;" + CUT_OFF, "40"), ("8*5:" + CUT_OFF, ""),
                         ("8*5:" + CUT_OFF, "SyntaxError: x"), ("8*5:" + CUT_OFF, "123456789")):  # fmt: skip
        assert TASK.observed(text, output) is None
    assert TASK.steps("8*5:40;47+40:87;") == ["8*5:", "40;47+40:", "87;"]
    assert TASK.hinted("47 8 5*+=", "87") == "47 8 5*+;87="
    TASK.tokenizer().encode(["47 8 5*+;87="])


def test_no_problem_of_the_evaluation_is_shown(bundle: BundleFolder) -> None:
    pools = []
    for seed in range(3):
        problems = TASK.problems(bundle, seed)
        parts = [set(part.tolist()) for part in (problems.demonstrations, problems.pool, problems.test)]
        assert [len(part) for part in parts] == [DEMONSTRATIONS, POOL, TEST]
        assert len(set.union(*parts)) == DEMONSTRATIONS + POOL + TEST
        pools.append(parts[1])
    assert pools[0] != pools[1] != pools[2]
    assert bundle.public().keys() == {"numbers", "operations", "shapes"}
    assert bundle.private().keys() == {"values"}


def test_the_first_policy_is_the_kept_one_and_its_error_is_declared(bundle: BundleFolder) -> None:
    low, high = TASK.clean_error
    assert low < bundle.facts["clean_error"] < high
    kept = load_weights(WEIGHTS, WEIGHTS_SHA256)
    assert all(torch.equal(bundle.model()[name], value.float()) for name, value in kept.items())
