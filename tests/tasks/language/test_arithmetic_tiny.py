"""The additions: what is held out, the template, the strict parser, and the first policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.pretrain import load_weights
from selfbench.suite.protocols.language_model import response_logprobs
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.arithmetic_tiny import (
    DEMONSTRATIONS,
    POOL,
    TEST,
    WEIGHTS,
    WEIGHTS_SHA256,
    ArithmeticTiny,
    ArithmeticTinyUnverified,
    all_terms,
    carries,
    prompts_of,
    responses_to,
)

TASK = ArithmeticTiny()


@pytest.fixture(scope="module")
def bundle() -> BundleFolder:
    return build(registry.get("task", "arithmetic-tiny"))


def test_every_sum_stands_once_in_one_order() -> None:
    terms = all_terms()
    assert len({frozenset(pair) for pair in terms.tolist()}) == len(terms) == 90 * 91 // 2
    assert terms.min() == 10
    assert terms.max() == 99
    # Both orders occur: the larger term is not always the second.
    assert 0.4 < (terms[:, 0] > terms[:, 1]).mean() < 0.6


@pytest.mark.parametrize("task", [TASK, ArithmeticTinyUnverified()], ids=lambda task: type(task).__name__)
def test_no_problem_of_the_evaluation_is_shown_in_either_order(bundle: BundleFolder, task: ArithmeticTiny) -> None:
    pools = []
    for seed in range(3):
        problems = task.problems(bundle, seed)
        sums = {name: {frozenset(pair) for pair in bundle.public()["terms"][getattr(problems, name)].tolist()}
                for name in ("demonstrations", "pool", "test")}  # fmt: skip
        assert not sums["test"] & (sums["demonstrations"] | sums["pool"])
        assert not sums["demonstrations"] & sums["pool"]
        assert {name: len(part) for name, part in sums.items()} == {
            "demonstrations": DEMONSTRATIONS, "pool": POOL, "test": TEST,
        }  # fmt: skip
        pools.append(sums["pool"])
    assert pools[0] != pools[1] != pools[2]


@pytest.mark.parametrize(
    ("terms", "prompt", "response", "n"),
    [
        ((47, 85), "47+85=", "2^3^=132", 2),
        ((12, 34), "12+34=", "6.4.=46", 0),
        ((19, 11), "19+11=", "0^3.=30", 1),
        ((50, 50), "50+50=", "0.0^=100", 1),
        ((99, 99), "99+99=", "8^9^=198", 2),
    ],
)
def test_worked_responses_by_hand(terms: tuple[int, int], prompt: str, response: str, n: int) -> None:
    pair = np.array([terms])
    assert prompts_of(pair) == [prompt]
    assert responses_to(pair) == responses_to(pair.astype(np.uint8)) == [response]
    assert TASK.answer(response) == str(sum(terms))
    assert carries(*terms) == n
    assert TASK.groups([prompt]) == [("no carry", "one carry", "two carries")[n]]


def test_every_worked_response_parses_and_fits() -> None:
    terms = all_terms()
    responses = responses_to(terms)
    assert [TASK.answer(text) for text in responses] == [str(total) for total in terms.sum(axis=1)]
    longest = join(TASK.tokenizer(), prompts_of(terms), responses)
    assert (longest.lengths - longest.starts).max() <= TASK.max_new


@pytest.mark.parametrize(
    "text",
    ["", "132", "2^3^132", "2^3^=", "2^3^=132=", "2^3=132", " 2^3^=132", "2^3^=132 ", "2^3^=0132", "2^3^=7",
     "2^3^=132" + CUT_OFF, "2^3^=132\n", "2^3^=１３２", "2^3^=1320", "2?3^=132"],
)  # fmt: skip
def test_what_is_not_of_the_form_has_no_answer(text: str) -> None:
    assert TASK.answer(text) is None


def test_hints_are_written_before_the_equals_sign() -> None:
    assert TASK.hinted("47+85=", "132") == "47+85?132="
    TASK.tokenizer().encode(["47+85?132="])


def test_the_first_policy_is_the_kept_one_and_its_error_is_declared(bundle: BundleFolder) -> None:
    low, high = TASK.clean_error
    assert low < bundle.facts["clean_error"] < high
    kept = load_weights(WEIGHTS, WEIGHTS_SHA256)
    loaded = bundle.model()
    assert all(torch.equal(loaded[name], value.float()) for name, value in kept.items())
    model = TASK.model()
    model.load_state_dict(loaded)
    assert sum(value.numel() for value in model.parameters()) == bundle.facts["parameters"]
    # It has learned the demonstrations, and knows the form of a response to any other problem.
    terms = all_terms()[: DEMONSTRATIONS + TEST]
    sequences = join(TASK.tokenizer(), prompts_of(terms), responses_to(terms))
    with torch.no_grad():
        logprobs = response_logprobs(model.eval(), *sequences.batch(np.arange(len(terms)), torch.device("cpu")))
    shown, hidden = logprobs[:DEMONSTRATIONS].mean(), logprobs[DEMONSTRATIONS:].mean()
    assert shown > hidden + 0.5


def test_hidden_answers_stay_out_of_what_methods_see(bundle: BundleFolder) -> None:
    assert bundle.public().keys() == {"terms"}
    assert bundle.private().keys() == {"sums"}
    assert not {"verifier", "answers"} & set(ArithmeticTinyUnverified.__selfbench__["grants"])


def test_further_attempts_and_feedback_are_words_of_the_model() -> None:
    assert TASK.steps("2^3^=132") == ["2^", "3^", "=132"]
    assert TASK.again("47+85=", "2^3^=132") == "47+85?2^3^=132="
    assert TASK.again("47+85=", "2^3…", "..^") == "47+85?2^3?..^="
    assert TASK.critic("47+85=", "2^3^=132") == "47+85?2^3^=132?"
    assert TASK.feedback([True, False, True]) == ".^."
    assert [TASK.approves(text) for text in ("...", ".^.", "", "..…", "2.")] == [True, False, None, None, None]
    longest = TASK.again("99+99=", "8^9^=19999", "." * 9)
    assert TASK.tokenizer().encode([longest])[1][0] + TASK.max_new < 64
