"""Responses that grow step by step, and the model of their values, against slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from selfbench.suite.protocols.generation import OwnSampler, generate
from selfbench.suite.protocols.language_model import last_logits
from selfbench.suite.protocols.policy import PolicyTask
from selfbench.suite.protocols.sampling import Sampling
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF, CharTokenizer

SYMBOLS = "\0\nabcde="
TOKENIZER = CharTokenizer(SYMBOLS)
PROMPTS = ["a=", "bcd=", "ab=", "e=", "ccc="]
BEGUN = ["", "ab", "b", "dcbae", "aaaa"]
ENDS = [SYMBOLS.index(symbol) for symbol in "be"]


@pytest.fixture(scope="module")
def model(letter_model: Callable[..., nn.Module]) -> nn.Module:
    return letter_model()


def slow(model: nn.Module, prompt: str, begun: str, ends: str, most: int) -> str:
    """Greedy, one token at a time, without cache, batch or padding."""
    text = begun
    while len(text) < most:
        ids, _ = TOKENIZER.encode([prompt + text])
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)).logits[0, -1]
        logits[TOKENIZER.pad] = -math.inf
        token = int(logits.argmax())
        if token == TOKENIZER.stop:
            return text
        text += SYMBOLS[token]
        if SYMBOLS[token] in ends:
            break
    return text + CUT_OFF


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("ends", ["", "be"])
def test_begun_responses_go_on_as_each_alone(model: nn.Module, rows: int, ends: str) -> None:
    told: list[int] = []
    begun = [text + CUT_OFF for text in BEGUN]
    made = generate(
        OwnSampler(model, TOKENIZER, rows), TOKENIZER, PROMPTS, 1, Sampling(0.0), max_new=7, begun=begun,
        generator=torch.Generator(), ends=[SYMBOLS.index(symbol) for symbol in ends],
        charge=lambda sequences, tokens: told.append(tokens),
    )  # fmt: skip
    expected = [slow(model, prompt, text, ends, 7) for prompt, text in zip(PROMPTS, BEGUN, strict=True)]
    assert made == [[text] for text in expected]
    assert len({len(text) for text in expected}) > 1
    # The stop symbol is a token too; CUT_OFF stands in its place.
    assert sum(told) == sum(
        len(text.removesuffix(CUT_OFF)) - len(first) + (not text.endswith(CUT_OFF))
        for text, first in zip(expected, BEGUN, strict=True)
    )


def test_a_full_response_goes_on_in_none(model: nn.Module) -> None:
    begun = [text + CUT_OFF for text in BEGUN]
    made = generate(
        OwnSampler(model, TOKENIZER, 6), TOKENIZER, PROMPTS, 2, Sampling(1.0), max_new=5,
        generator=torch.Generator().manual_seed(0), begun=begun, ends=ENDS,
    )  # fmt: skip
    assert [len(texts) for texts in made] == [2, 2, 2, 0, 2]
    for texts, first in zip(made, BEGUN, strict=True):
        assert all(text.startswith(first) and len(text.removesuffix(CUT_OFF)) <= 5 for text in texts)
    sampler, draw = OwnSampler(model, TOKENIZER, 6), torch.Generator()
    nothing = generate(
        sampler, TOKENIZER, PROMPTS[:2], 1, Sampling(0.0), max_new=3, generator=draw, begun=[CUT_OFF, CUT_OFF]
    )
    assert nothing == generate(sampler, TOKENIZER, PROMPTS[:2], 1, Sampling(0.0), max_new=3, generator=draw)


def test_unfinished_responses_have_no_stop_symbol(model: nn.Module) -> None:
    texts = ["ab", "ab" + CUT_OFF, CUT_OFF, ""]
    sequences = join(TOKENIZER, ["c="] * 4, texts, unfinished=True)
    assert sequences.lengths.tolist() == [5, 4, 2, 3]
    assert [row[:n].tolist() for row, n in zip(sequences.ids, sequences.lengths, strict=True)] == [
        [4, 7, 2, 3, 1], [4, 7, 2, 3], [4, 7], [4, 7, 1],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="cut off"):
        join(TOKENIZER, ["c="] * 4, texts)


def test_the_last_logits_are_those_of_each_sequence_alone(model: nn.Module) -> None:
    sequences = join(TOKENIZER, PROMPTS, [text + CUT_OFF for text in BEGUN], unfinished=True)
    with torch.no_grad():
        found = last_logits(model, sequences.ids, sequences.lengths, TOKENIZER.pad, torch.device("cpu"))
        for row, n, logits in zip(sequences.ids, sequences.lengths, found, strict=True):
            alone = model(input_ids=torch.from_numpy(row[None, :n])).logits[0, -1]
            torch.testing.assert_close(logits.double(), alone, rtol=0, atol=1e-5)


def test_steps_of_a_response() -> None:
    class Marked(PolicyTask):
        step_ends = ".^"

    assert Marked().steps("2^3.=132") == ["2^", "3.", "=132"]
    assert PolicyTask().steps("2^3.=132") == ["2^3.=132"]
    assert Marked().steps("2^") == ["2^", ""]
    for text in ("", "2^3.=132", "..", "a.b"):
        assert "".join(Marked().steps(text)) == text
