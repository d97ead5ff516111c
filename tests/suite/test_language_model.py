"""Generation, scoring and losses of a language model against slow loops and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.suite.protocols.generation import OwnSampler, generate
from selfbench.suite.protocols.language_model import response_logprobs
from selfbench.suite.protocols.policy_losses import dpo_loss, sft_loss
from selfbench.suite.protocols.sampling import Sampling, choose
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.texts import pack, unpack
from selfbench.suite.protocols.tokens import CUT_OFF, CharTokenizer

TOKENIZER = CharTokenizer("\0\nabcde=")
PROMPTS = ["a=", "bcd=", "ab=", "e=", "ccc="]
RESPONSES = ["ab", "", "d", "abcd", "eeee"]


@pytest.fixture(scope="module")
def model(letter_model: Callable[..., nn.Module]) -> nn.Module:
    return letter_model()


def next_logits(model: nn.Module, text: str) -> Tensor:
    """Logits (V,) after one prompt, without cache, batch or padding."""
    ids, _ = TOKENIZER.encode([text])
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)).logits[0, -1]


def slow_greedy(model: nn.Module, prompt: str, most: int) -> str:
    text = prompt
    for _ in range(most):
        logits = next_logits(model, text)
        logits[TOKENIZER.pad] = -math.inf
        token = int(logits.argmax())
        if token == TOKENIZER.stop:
            return text[len(prompt) :]
        text += "\0\nabcde="[token]
    return text[len(prompt) :] + CUT_OFF


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_greedy_generation_of_unlike_prompts_is_that_of_each_alone(model: nn.Module, rows: int) -> None:
    made = generate(
        OwnSampler(model, TOKENIZER, rows), TOKENIZER, PROMPTS, 1, Sampling(0.0), max_new=6, generator=draw()
    )
    assert made == [[slow_greedy(model, prompt, 6)] for prompt in PROMPTS]
    assert len({text for [text] in made}) > 2


def test_all_samples_of_a_prompt_start_from_its_keys_and_values(model: nn.Module) -> None:
    made = generate(OwnSampler(model, TOKENIZER, 6), TOKENIZER, PROMPTS, 3, Sampling(0.0), max_new=6, generator=draw())
    assert made == [[slow_greedy(model, prompt, 6)] * 3 for prompt in PROMPTS]


def test_generated_tokens_are_counted_exactly_before_the_work(model: nn.Module) -> None:
    told: list[tuple[int, int]] = []
    made = generate(
        OwnSampler(model, TOKENIZER, 8), TOKENIZER, PROMPTS, 4, Sampling(1.0), max_new=6, generator=draw(),
        charge=lambda sequences, tokens: told.append((sequences, tokens)),
    )  # fmt: skip
    lengths = [6 if text.endswith(CUT_OFF) else len(text) + 1 for group in made for text in group]
    assert sum(tokens for _, tokens in told) == sum(lengths)
    assert sum(sequences for sequences, _ in told) == 20
    assert len(set(lengths)) > 1


def test_equal_seeds_give_equal_samples(model: nn.Module) -> None:
    one, two, other = (
        generate(OwnSampler(model, TOKENIZER, 8), TOKENIZER, PROMPTS, 4, Sampling(1.0), max_new=6, generator=draw(seed))
        for seed in (1, 1, 2)
    )
    assert one == two
    assert one != other


def test_samples_have_the_frequencies_of_the_tempered_model() -> None:
    logits = torch.tensor([9.0, 0.5, 1.0, -0.5, 0.2])
    n = 40_000
    for temperature in (1.0, 0.5):
        tokens = choose(logits.expand(n, -1).clone(), Sampling(temperature), 0, draw(3))
        found = torch.bincount(tokens, minlength=5) / n
        expected = torch.cat([torch.zeros(1), (logits[1:] / temperature).softmax(0)])
        assert (found - expected).abs().max() < 0.01


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    p = torch.tensor([0.0, 0.45, 0.05, 0.3, 0.2])
    tokens = {
        top_p: set(choose(p.log().expand(3000, -1).clone(), Sampling(1.0, top_p), 0, draw(5)).tolist())
        for top_p in (0.4, 0.7, 0.8, 1.0)
    }
    assert tokens == {0.4: {1}, 0.7: {1, 3}, 0.8: {1, 3, 4}, 1.0: {1, 2, 3, 4}}


def test_padding_is_never_generated() -> None:
    logits = torch.zeros(500, 3)
    logits[:, 0] = 50.0
    assert 0 not in choose(logits, Sampling(1.0), 0, draw()).tolist()


def test_logprobs_are_those_of_a_loop_over_tokens(model: nn.Module) -> None:
    sequences = join(TOKENIZER, PROMPTS, RESPONSES)
    batch = sequences.batch(np.arange(5), torch.device("cpu"))
    with torch.no_grad():
        found = response_logprobs(model, *batch)
    for at, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected, text = 0.0, prompt
        for symbol in [*response, "\n"]:
            expected += float(next_logits(model, text).log_softmax(0)["\0\nabcde=".index(symbol)])
            text += symbol
        # Logits are taken to float32 on the way.
        assert float(found[at]) == pytest.approx(expected, abs=1e-4)


def test_lengths_count_prompt_response_and_stop() -> None:
    sequences = join(TOKENIZER, PROMPTS, RESPONSES)
    assert sequences.lengths.tolist() == [len(p) + len(r) + 1 for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert TOKENIZER.decode(sequences.ids[[3]][:, 2:]) == ["abcd"]


def test_what_was_cut_off_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="cut off"):
        join(TOKENIZER, ["a="], ["ab" + CUT_OFF])
    with pytest.raises(ValueError, match="vocabulary"):
        TOKENIZER.encode(["a", "xyz"])
    with pytest.raises(ValueError, match="vocabulary"):
        TOKENIZER.encode(["a\n"])


@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_hold_every_example_once(shuffled: bool) -> None:
    texts = ["a" * (1 + at % 29) for at in range(300)]
    sequences = join(TOKENIZER, ["b="] * 300, texts)
    batches = list(sequences.batches(8, np.random.default_rng(0) if shuffled else None))
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    padded = sum(len(batch) * sequences.lengths[batch].max() for batch in batches)
    assert padded < 1.5 * sequences.lengths.sum()


def test_the_sft_loss_weighs_tokens_of_examples() -> None:
    logprobs, tokens = torch.tensor([-3.0, -8.0, -1.0]), torch.tensor([2, 4, 1])
    assert float(sft_loss(logprobs, tokens, torch.ones(3))) == pytest.approx(12 / 7)
    assert float(sft_loss(logprobs, tokens, torch.tensor([1.0, 0.5, 0.0]))) == pytest.approx((3 + 4) / (2 + 2))


def test_dpo_is_its_closed_form_with_its_gradients() -> None:
    chosen = torch.tensor([0.7, -1.2, 0.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.4, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    ones, beta = torch.ones(3, dtype=torch.float64), 0.3
    loss = dpo_loss(chosen, rejected, ones, ones, beta)
    margins = beta * (chosen - rejected).detach().numpy()
    assert loss.item() == pytest.approx(np.mean(np.log1p(np.exp(-margins))), abs=1e-12)
    loss.backward()
    # d loss / d chosen = -beta sigmoid(-margin) / n: what is chosen becomes likelier, what is rejected less likely.
    expected = torch.from_numpy(-beta / (1 + np.exp(margins)) / 3)
    torch.testing.assert_close(chosen.grad, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rejected.grad, -expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("label", [0.0, 0.25, 0.5, 0.9])
def test_soft_labels_mix_the_two_directions(label: float) -> None:
    chosen = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.4, 0.9], dtype=torch.float64, requires_grad=True)
    ones, labels = torch.ones(2, dtype=torch.float64), torch.full((2,), label, dtype=torch.float64)
    forward, backward = dpo_loss(chosen, rejected, ones, ones, 0.3), dpo_loss(rejected, chosen, ones, ones, 0.3)
    mixed = dpo_loss(chosen, rejected, labels, ones, 0.3)
    assert mixed.item() == pytest.approx(label * forward.item() + (1 - label) * backward.item(), abs=1e-12)
    margins = 0.3 * (chosen - rejected).detach()
    expected = 0.3 * (margins.sigmoid() - label) / 2
    torch.testing.assert_close(torch.autograd.grad(mixed, chosen)[0], expected, rtol=0, atol=1e-12)


def test_a_label_of_one_half_draws_margins_to_zero() -> None:
    margin = torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True)
    half, zero, one = (torch.full((2,), value, dtype=torch.float64) for value in (0.5, 0.0, 1.0))
    [slope] = torch.autograd.grad(dpo_loss(margin, zero, half, one, 1.0), margin)
    assert (slope.sign() == margin.detach().sign()).all()


def test_pair_weights_are_those_of_a_mean() -> None:
    chosen, rejected = torch.tensor([0.7, -1.2]), torch.tensor([-0.4, 0.9])
    ones = torch.ones(2)
    each = [dpo_loss(chosen[at : at + 1], rejected[at : at + 1], ones[:1], ones[:1], 0.1) for at in (0, 1)]
    found = dpo_loss(chosen, rejected, ones, torch.tensor([3.0, 1.0]), 0.1)
    assert float(found) == pytest.approx((3 * float(each[0]) + float(each[1])) / 4)


@pytest.mark.parametrize("texts", [[], [""], ["", "a"], ["a", "bcd", ""], ["…", "x"]])
def test_texts_survive_as_arrays(texts: list[str]) -> None:
    assert unpack(pack(texts)) == texts


def test_strange_arrays_are_no_texts() -> None:
    with pytest.raises(ValueError, match="uint8"):
        unpack(np.zeros((2, 3), np.float32))
    assert unpack(np.full((1, 2), 0xFF, np.uint8)) == ["��"]
