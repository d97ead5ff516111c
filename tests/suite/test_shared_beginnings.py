"""What saves time with larger models (a beginning that is run once, logits where they are needed) changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.suite.protocols import generation, language_model
from selfbench.suite.protocols.generation import OwnSampler, generate
from selfbench.suite.protocols.language_model import fused_attention, likeliest, response_logprobs
from selfbench.suite.protocols.sampling import Sampling
from selfbench.suite.protocols.sequences import Sequences, join
from selfbench.suite.protocols.tokens import CharTokenizer

SYMBOLS = "\0\nabcde="
TOKENIZER = CharTokenizer(SYMBOLS)
PROMPTS = [f"abcab{rest}=" for rest in ("a", "bcd", "ab", "e", "dcc")]
RESPONSES = ["ab", "", "d", "abcd", "eeee"]
OPTIONS = [["ab", "c", "ddd"], ["e", "ba"], ["a", "b", "c", "d"], ["cab", "bad"], ["a", "aa", "aaa"]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(letter_model: Callable[..., nn.Module]) -> nn.Module:
    return letter_model(1, 4.0, num_key_value_heads=1, tie_word_embeddings=True)


@pytest.fixture(params=[(2, math.inf), (math.inf, 4), (2, 4)], ids=["shared", "head", "both"])
def lean(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Turns the savings on for models as small as this one; returns whether beginnings are shared."""
    shared, large = request.param
    monkeypatch.setattr(language_model, "_SHARED", shared)
    monkeypatch.setattr(language_model, "LARGE", large)
    return shared == 2


class Counter:
    """Counts the tokens that go through a model."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        self.hook = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        self.tokens += kwargs["input_ids"].numel()


def gradients(model: nn.Module, sequences: Sequences) -> tuple[Tensor, list[Tensor]]:
    logprobs = sequences.logprobs(model, np.arange(len(sequences)), CPU)
    found = torch.autograd.grad((logprobs * torch.arange(1.0, 6.0)).sum(), list(model.parameters()))
    return logprobs.detach(), list(found)


def test_logprobs_and_their_gradient_are_those_of_whole_sequences(model: nn.Module, lean: bool) -> None:
    sequences = join(TOKENIZER, PROMPTS, RESPONSES)
    assert sequences.shared == (5 if lean else 0)
    plain = Sequences(sequences.ids, sequences.starts, sequences.lengths)
    ids, response = plain.batch(np.arange(5), CPU)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.log_softmax(dim=2)
    expected = (logits.gather(2, ids[:, 1:, None])[:, :, 0] * response[:, 1:]).sum(dim=1)
    weights = torch.arange(1.0, 6.0)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    counter = Counter(model)
    found, found_gradients = gradients(model, sequences)
    counter.hook.remove()
    assert torch.allclose(found.double(), expected, atol=1e-5)
    for one, two in zip(found_gradients, expected_gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)
    whole = ids[:, :-1].numel()
    assert counter.tokens == (whole - 4 * 5 if lean else whole)


def test_two_kinds_of_prompts_pass_apart(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "_SHARED", 3)
    monkeypatch.setattr(language_model, "LARGE", 4)
    sequences = join(TOKENIZER, ["abc=", "eeeebcdabcd=", "abce=", "eeeebcdabcc=", "eeeebcdaaab="], RESPONSES)
    assert sequences.shared == 0
    counter = Counter(model)
    found, found_gradients = gradients(model, sequences)
    counter.hook.remove()
    alone = torch.cat([sequences.logprobs(model, np.array([at]), CPU) for at in range(5)])
    expected = torch.autograd.grad((alone * torch.arange(1.0, 6.0)).sum(), list(model.parameters()))
    assert torch.allclose(found, alone.detach(), atol=1e-5)
    for one, two in zip(found_gradients, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)
    # Of the short ones the first three tokens are run once, of the long ones the first eight; stop symbols never.
    short, long = 3 + 2 * (4 + 2 - 3), 8 + 3 * (12 + 4 - 8)
    assert counter.tokens == short + long


def test_many_kinds_of_prompts_pass_together(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "_SHARED", 3)
    monkeypatch.setattr(language_model, "LARGE", 4)
    sequences = join(TOKENIZER, ["abcd=", "abce=", "bcda=", "bcde=", "cab="], RESPONSES)
    counter = Counter(model)
    with torch.no_grad():
        together = sequences.logprobs(model, np.arange(5), CPU)
    counter.hook.remove()
    ids, response = sequences.batch(np.arange(5), CPU)
    with torch.no_grad():
        assert torch.equal(together, response_logprobs(model, ids, response, first=int(sequences.starts.min())))
    assert counter.tokens == ids[:, :-1].numel()


def test_generation_is_that_without_savings(model: nn.Module, lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(sampling: Sampling, prompts: list[str]) -> list[list[str]]:
        draw = torch.Generator().manual_seed(3)
        sampler = OwnSampler(model, TOKENIZER, 9)
        return generate(sampler, TOKENIZER, prompts, 3, sampling, max_new=6, generator=draw)

    same_length = ["abcabd=", "abcabc=", "abcabe="]
    sampled = [(Sampling(1.0), PROMPTS), (Sampling(1.0), same_length), (Sampling(1.0, 0.9), PROMPTS)]
    greedy = [(Sampling(0.0), PROMPTS), (Sampling(0.0), PROMPTS[:1])]
    found = [made(*case) for case in sampled + greedy]
    monkeypatch.setattr(language_model, "_SHARED", math.inf)
    monkeypatch.setattr(generation, "_SHRINK", 0.0)
    assert found[:3] == [made(*case) for case in sampled]
    monkeypatch.setattr(language_model, "LARGE", math.inf)
    assert found[3:] == [made(*case) for case in greedy]
    assert len({text for group in found[0] for text in group}) > 4


def test_what_has_ended_leaves_the_batch(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LARGE", 4)

    def steps() -> list[int]:
        rows: list[int] = []
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        draw = torch.Generator().manual_seed(0)
        generate(OwnSampler(model, TOKENIZER, 60), TOKENIZER, PROMPTS, 12, Sampling(1.0), max_new=20, generator=draw)
        hook.remove()
        return rows[1:]

    shrunk = steps()
    assert shrunk[0] > 4 * shrunk[-1]
    assert all(2 * after <= before or after == before for before, after in itertools.pairwise(shrunk))
    monkeypatch.setattr(generation, "_SHRINK", 0.0)
    assert steps() == [60] * len(shrunk)


def test_generation_runs_fused_attention_and_training_what_it_had(letter_model: Callable[..., nn.Module]) -> None:
    model: Any = letter_model(1, 4.0, num_key_value_heads=1, tie_word_embeddings=True)

    def greedy() -> list[list[str]]:
        sampler = OwnSampler(model, TOKENIZER, 9)
        return generate(sampler, TOKENIZER, PROMPTS, 1, Sampling(0.0), max_new=6, generator=torch.Generator())

    expected, seen = greedy(), set()
    model.set_attn_implementation("eager")
    hook = model.register_forward_pre_hook(lambda module, args: seen.add(module.config._attn_implementation))
    assert greedy() == expected
    hook.remove()
    assert seen == {"sdpa"}
    assert model.config._attn_implementation == "eager"
    with pytest.raises(KeyError), fused_attention(model):
        raise KeyError
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_likeliest_option_is_that_of_a_loop(model: nn.Module, lean: bool, rows: int) -> None:
    expected = []
    for prompt, options in zip(PROMPTS, OPTIONS, strict=True):
        scores = []
        for option in options:
            first, [start] = TOKENIZER.encode([prompt])
            second, [size] = TOKENIZER.encode([option])
            ids = torch.from_numpy(np.concatenate([first, second], axis=1))
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits.log_softmax(dim=2)[0]
            scores.append(sum(float(logprobs[start - 1 + at, ids[0, start + at]]) for at in range(size)))
        expected.append(int(np.argmax(scores)))
    assert likeliest(model, TOKENIZER, PROMPTS, OPTIONS, rows, CPU).tolist() == expected
    assert len(set(expected)) > 1


def test_a_single_sequence_shares_nothing(model: nn.Module, lean: bool) -> None:
    sequences = join(TOKENIZER, PROMPTS[:1], RESPONSES[:1])
    assert sequences.shared == 0
    batch = sequences.batch(np.arange(1), CPU)
    with torch.no_grad():
        assert torch.equal(sequences.logprobs(model, np.arange(1), CPU), response_logprobs(model, *batch, first=7))


def test_what_prompts_share_leaves_a_token_of_each() -> None:
    ids = np.tile(np.arange(40), (3, 1))
    assert language_model.shared_beginning(ids, np.array([40, 30, 35])) == 29
    assert language_model.shared_beginning(ids, np.array([40, 17, 35])) == 16
    assert language_model.shared_beginning(ids, np.array([40, 16, 35])) == 0
    ids[1, 20] = 0
    assert language_model.shared_beginning(ids, np.array([40, 30, 35])) == 20
    assert language_model.shared_beginning(ids[:1], np.array([40])) == 0
