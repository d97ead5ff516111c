"""MC-CoT: the voted loss by hand, its dropout, its cost, and what it is without either."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from selfbench.methods.self_rewarding.mc_cot import MCCoT
from selfbench.methods.self_rewarding.self_consistency import SelfConsistency
from selfbench.suite.protocols.dropout import residual_dropout
from selfbench.suite.protocols.policy import PolicyTask
from selfbench.suite.protocols.policy_examples import Example
from selfbench.suite.protocols.policy_model import Policy

Play = Callable[..., Any]
EXAMPLES = [Example("1+1=", "2"), Example("8+9=", "17"), Example("3+4=", "9")]


def test_the_samples_of_the_majority_are_learned_by_a_vote(view: Any, scripted: Callable[..., Any]) -> None:
    made = [["3", "3", "2", "x"], ["5", "6", "7", "5…"], ["8", "8", "8", "18"]]
    told: list[Any] = []
    policy = scripted([made])
    policy.finetune_voted = lambda *args: told.append(args)
    MCCoT(samples=4, passes=3, dropout=0.2, epochs=2).round(policy, view, 1)
    usual = scripted([made])
    SelfConsistency(samples=4).round(usual, view, 1)
    [(examples, _)] = usual.called("finetune")
    assert [(list(map(tuple, kept)), *rest) for kept, *rest in told] == [(examples, 3, 0.2, 2)]
    assert policy.called("use") == [("base",)]


def test_the_loss_is_the_cross_entropy_of_mean_logits(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of three passes against a loop over examples, tokens and passes that sees the same dropout masks."""
    seen: dict[str, Any] = {}

    class Looks(MCCoT):
        def round(self, policy: Any, view: Any, number: int) -> None:
            if number > 1:
                return
            model, tokenizer = policy._model, policy._tokenizer
            # Masks that depend on the pass alone, so that a loop of single sequences can have the same.
            passes = iter([*range(3), *range(3)])

            def dropped(model: nn.Module, p: float, generator: Any) -> Any:
                assert p == 0.5
                return _masked(model, passes)

            monkeypatch.setattr("selfbench.suite.protocols.policy_objectives.residual_dropout", dropped)
            real = policy._training.step

            def step(optimizer: Any, parameters: Any, loss: Any, share: float, lr_scale: float) -> None:
                seen["loss"] = loss.detach().clone()
                seen["gradient"] = torch.autograd.grad(loss, parameters, retain_graph=True)
                real(optimizer, parameters, loss, share, lr_scale)

            parameters = [value for _, value in policy._weights.trained()]
            total, n = torch.zeros(()), 0
            for prompt, response in EXAMPLES:
                ids, _ = tokenizer.encode([prompt + response])
                row = torch.tensor([*ids[0].tolist(), tokenizer.stop])
                logits = torch.zeros(len(row) - 1, len(tokenizer._characters))
                for at in range(3):
                    with _masked(model, iter([at])):
                        logits = logits + model(input_ids=row[None]).logits[0, :-1] / 3
                for place in range(len(prompt) - 1, len(row) - 1):
                    total, n = total - logits[place].log_softmax(0)[row[place + 1]], n + 1
            seen["slow"] = (total / n).detach()
            seen["slow gradient"] = torch.autograd.grad(total / n, parameters)
            monkeypatch.setattr(policy._training, "step", step)
            policy.finetune_voted(EXAMPLES, 3, 0.5)

    play(Looks())
    assert torch.allclose(seen["loss"], seen["slow"], atol=1e-6)
    for one, two in zip(seen["gradient"], seen["slow gradient"], strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert any(bool(one.any()) for one in seen["gradient"])


class _masked:
    """Every pass inside scales what the feed-forward part adds by a fixed mask of its own."""

    def __init__(self, model: nn.Module, passes: Any) -> None:
        self.model, self.passes = model, passes

    def __enter__(self) -> None:
        def mask(module: nn.Module, inputs: Any, output: Any) -> Any:
            draw = torch.Generator().manual_seed(next(self.passes))
            return output * (torch.rand(output.shape[-1], generator=draw) >= 0.5) * 2.0

        [part] = [module for name, module in self.model.named_modules() if name.endswith("mlp")]
        self.hook = part.register_forward_hook(mask)

    def __exit__(self, *args: Any) -> None:
        self.hook.remove()


def test_dropout_falls_on_what_layers_add(tiny_task: type[PolicyTask]) -> None:
    model = tiny_task().model().eval()
    ids = torch.arange(2, 14)[None]
    before = model(input_ids=ids).logits
    added: dict[str, Any] = {}
    parts = {name: module for name, module in model.named_modules() if name.endswith((".mlp", ".self_attn"))}
    assert len(parts) == 2
    for name, module in parts.items():
        module.register_forward_hook(lambda _, __, output, name=name: added.update({name: output}))
    with residual_dropout(model, 0.0, torch.Generator()):
        assert torch.equal(model(input_ids=ids).logits, before)
    draw = torch.Generator().manual_seed(0)
    with residual_dropout(model, 0.25, draw):
        first, second = (model(input_ids=ids.expand(50, -1)).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1]), "rows have masks of their own"
    assert torch.equal(model(input_ids=ids).logits, before), "and afterwards there is none"
    with residual_dropout(model, 0.25, torch.Generator().manual_seed(0)):
        assert torch.equal(model(input_ids=ids.expand(50, -1)).logits, first)
    with (
        pytest.raises(ValueError, match=r"no modules called self_attn or mlp.* such as `sft`"),
        residual_dropout(nn.Linear(1, 1), 0.1, draw),
    ):
        pass


def test_as_many_are_dropped_as_it_says_and_the_rest_are_larger() -> None:
    class Part(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = nn.ModuleDict({"mlp": Part()})
    with residual_dropout(model, 0.3, torch.Generator().manual_seed(1)):
        found = model["mlp"](torch.ones(200, 100))
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20_000))


def test_one_pass_without_dropout_is_self_consistency(play: Play) -> None:
    usual = play(SelfConsistency(), folder="usual")
    single = play(MCCoT(passes=1, dropout=0.0), folder="single")
    assert single.outcome == usual.outcome
    assert single.counts.tokens == usual.counts.tokens


def test_passes_without_dropout_change_nothing_but_the_cost(play: Play) -> None:
    seen: list[Any] = []

    class Looks(MCCoT):
        def round(self, policy: Policy, view: Any, number: int) -> None:
            if number > 1:
                return
            for train in (
                lambda: policy.finetune(EXAMPLES, epochs=2),
                lambda: policy.finetune_voted(EXAMPLES, 4, 0.0, 2),
            ):
                policy.use("base")
                # The order of the batches depends on the calls that were made.
                policy._calls._number = 10
                counts = dataclasses.replace(view._meter.counts)
                train()
                now = view._meter.counts
                weights = [value.detach().clone() for _, value in policy._weights.trained()]
                used = (now.forward - counts.forward, now.backward - counts.backward, now.tokens - counts.tokens)
                seen.append((weights, used))

    play(Looks())
    (plain, one), (voted, four) = seen
    assert four == tuple(4 * used for used in one)
    assert one[0] == 2 * len(EXAMPLES)
    for a, b in zip(plain, voted, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play) -> None:
    method = MCCoT(passes=2, dropout=0.2)
    whole = play(dataclasses.replace(method), folder="whole")
    play(dataclasses.replace(method), folder="killed", stop_after=1)
    resumed = play(dataclasses.replace(method), folder="killed")
    assert whole.outcome == resumed.outcome
    permuted = play(dataclasses.replace(method), folder="permuted", permute=1)
    assert permuted.outcome.predictions_sha256 == whole.outcome.predictions_sha256
    plain = play(SelfConsistency(), folder="plain")
    assert plain.outcome.predictions_sha256 != whole.outcome.predictions_sha256


def test_nothing_to_learn_is_no_error(play: Play) -> None:
    class Nothing(MCCoT):
        def round(self, policy: Policy, view: Any, number: int) -> None:
            assert math.isnan(policy.finetune_voted([], 2, 0.1))

    play(Nothing())
