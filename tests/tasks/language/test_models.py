"""Checkpoints, tokens, chat templates and adapters of pre-trained models, on a tiny one of the same layout."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing, GateError, UsageError
from selfbench.suite.places import data_folder
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.addition_smol import AdditionSmol
from selfbench.tasks.language.models import (
    SubwordTokenizer,
    adapters,
    add_adapters,
    chat_frame,
    checkpoint,
    digest,
    load_model,
    set_precision,
)

NAME = "qwen25-05b-instruct"


class TinyAddition(AdditionSmol):
    model_name = NAME
    gate = None


def tokens(folder: Path) -> SubwordTokenizer:
    return SubwordTokenizer(folder, "<|im_end|>", "<|endoftext|>")


def test_texts_come_back_from_their_tokens(tiny_hub_model: Path) -> None:
    tokenizer = tokens(tiny_hub_model)
    texts = ["47 + 85?", "", "größer ☂\n", "<|im_start|>user\nHi<|im_end|>\n"]
    ids, lengths = tokenizer.encode(texts)
    assert (ids == tokenizer.pad).sum(axis=1).tolist() == (ids.shape[1] - lengths).tolist()
    # A special token that is written out is one token.
    assert lengths.tolist() == [8, 0, len(texts[2].encode()), 1 + 5 + 2 + 1 + 1]
    stop = np.full((len(texts), 1), tokenizer.stop)
    plain = [0, 1, 2]
    whole = np.concatenate([ids, stop], axis=1)
    assert [tokenizer.decode(whole)[at] for at in plain] == [texts[at] for at in plain]
    assert [tokenizer.decode(ids)[at] for at in plain] == [texts[at] + CUT_OFF for at in plain]
    # What comes after the stop does not count.
    after = np.concatenate([whole, ids], axis=1)
    assert tokenizer.decode(after)[0] == texts[0]


def test_half_a_character_is_a_text_that_can_be_sent(tiny_hub_model: Path) -> None:
    tokenizer = tokens(tiny_hub_model)
    ids, lengths = tokenizer.encode(["☂"])
    assert lengths[0] == 3
    [text] = tokenizer.decode(ids[:, :1])
    assert text.encode()
    nul, _ = tokenizer.encode(["a\0b"])
    assert tokenizer.decode(nul) == ["ab" + CUT_OFF]


@pytest.mark.parametrize(("stop", "pad"), [("<|eot|>", "<|endoftext|>"), ("<|im_end|>", "<pad>")])
def test_a_token_that_is_not_there_is_named(tiny_hub_model: Path, stop: str, pad: str) -> None:
    with pytest.raises(DataMissing, match=r"has no token (<\|eot\|>|<pad>)\. Let `stop` and `pad` of the task"):
        SubwordTokenizer(tiny_hub_model, stop, pad)


def test_one_token_cannot_end_a_response_and_fill_batches(tiny_hub_model: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot fill batches too: let the task's `pad` be another token of \S+json"):
        SubwordTokenizer(tiny_hub_model, "<|im_end|>", "<|im_end|>")


def test_a_template_that_does_not_write_the_words_once_says_what_to_do(tiny_hub_model: Path) -> None:
    (tiny_hub_model / "chat_template.jinja").unlink(missing_ok=True)
    file = tiny_hub_model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": "fixed"}))
    with pytest.raises(UsageError, match=r"does not write a user's words once.*chat_template\.jinja.*`frame`"):
        chat_frame(tiny_hub_model, "")


def test_the_chat_template_stands_around_a_users_words(tiny_hub_model: Path) -> None:
    assert chat_frame(tiny_hub_model, "Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
    )  # fmt: skip
    assert chat_frame(tiny_hub_model, "")[0] == "<|im_start|>user\n"


def test_a_tokenizer_without_chat_template_says_what_to_do(tiny_hub_model: Path) -> None:
    (tiny_hub_model / "chat_template.jinja").unlink(missing_ok=True)
    file = tiny_hub_model / "tokenizer_config.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items()
                                if key != "chat_template"}))  # fmt: skip
    with pytest.raises(UsageError, match=r"no chat template.*chat_template\.jinja.*frame"):
        TinyAddition().build(Data(data_folder()))


def test_adapters_begin_as_nothing_and_are_all_that_is_trained(tiny_hub_model: Path) -> None:
    pytest.importorskip("peft")
    model = load_model(tiny_hub_model)
    ids = torch.arange(12)[None]
    before = model(input_ids=ids).logits
    add_adapters(model, rank=4, scale=2.0, seed=0)
    assert torch.equal(model(input_ids=ids).logits, before)
    trained = adapters(model)
    # Four projections of two layers, A and B of each.
    assert len(trained) == 4 * 2 * 2
    assert all("lora_" in name for name in trained)
    again = load_model(tiny_hub_model)
    add_adapters(again, rank=4, scale=2.0, seed=0)
    assert all(torch.equal(value, adapters(again)[name]) for name, value in trained.items())
    add_adapters(other := load_model(tiny_hub_model), rank=4, scale=2.0, seed=1)
    assert not all(torch.equal(value, adapters(other)[name]) for name, value in trained.items())


def test_an_adapter_adds_its_scaled_product(tiny_hub_model: Path) -> None:
    pytest.importorskip("peft")
    model = load_model(tiny_hub_model)
    add_adapters(model, rank=4, scale=2.0, seed=0)
    layer: Any = model.model.layers[0].self_attn.q_proj
    x, draw = torch.randn(3, 24), torch.Generator().manual_seed(0)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.copy_(torch.randn(b.shape, generator=draw))
    expected = x @ layer.base_layer.weight.T + 2.0 * (x @ a.T) @ b.T
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_casts_that_autocast_would_undo_are_left_out(tiny_hub_model: Path) -> None:
    layers = pytest.importorskip("peft.tuners.lora")
    model = load_model(tiny_hub_model)
    add_adapters(model, rank=4, scale=2.0, seed=0)
    set_precision(model, "bf16")
    draw = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.copy_(torch.randn(value.shape, generator=draw))

    def step() -> tuple[int, list[torch.Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as profile:
            model(input_ids=torch.arange(12)[None]).logits.float().square().mean().backward()
        casts = sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")
        return casts, [value.grad.clone() for value in model.parameters() if value.requires_grad]

    casts, gradients = step()
    adapted = [module for module in model.modules() if isinstance(module, layers.LoraLayer)]
    for layer in adapted:
        layer.cast_input_dtype_enabled = True
    more, same = step()
    # There and back, in the forward and in the backward pass.
    assert more - casts >= 2 * len(adapted) == 16
    assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_only_what_is_not_trained_is_held_in_the_runs_precision(
    tiny_hub_model: Path, precision: str, frozen: torch.dtype
) -> None:
    pytest.importorskip("peft")
    model = load_model(tiny_hub_model)
    add_adapters(model, rank=4, scale=2.0, seed=0)
    set_precision(model, precision)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert {value.dtype for value in model.parameters() if not value.requires_grad} == {frozen}
    # The head is still the embedding.
    assert model.lm_head.weight is model.model.embed_tokens.weight


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_missing_packages_are_named_with_the_command(
    tiny_hub_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_hub_model)
    with monkeypatch.context() as patch:
        without(patch, "peft")
        with pytest.raises(UsageError, match=r"peft.*pip install 'selfbench\[language\]'"):
            add_adapters(model, 4, 2.0, 0)
    file = Data(data_folder()).folder("smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    monkeypatch.setattr(Data, "file", lambda self, name, member: file)
    without(monkeypatch, "gguf")
    with pytest.raises(UsageError, match=r"gguf.*pip install 'selfbench\[language\]'"):
        checkpoint(Data(data_folder()), "smollm2")


def test_a_missing_model_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    data = Data(tmp_path)
    with pytest.raises(DataMissing, match="selfbench data fetch smollm2"):
        checkpoint(data, "smollm2")
    with pytest.raises(DataMissing, match=f"selfbench data fetch {NAME}"):
        checkpoint(data, NAME)
    # A published digest needs no file.
    assert digest(data, "smollm2").startswith("b179c9523d0e")


def test_a_bundle_holds_template_digest_and_untrained_adapters(tiny_hub_model: Path) -> None:
    pytest.importorskip("peft")
    from selfbench.suite.protocols.texts import unpack

    task = TinyAddition()
    bundle = task.build(Data(data_folder()))
    assert bundle.facts["model_sha256"] == unpack(bundle.public["model_sha256"])[0] == digest(Data(data_folder()), NAME)
    assert len(bundle.facts["model_sha256"]) == 64
    assert bundle.public.keys() == {"terms", "frame", "model_sha256"}
    assert bundle.private.keys() == {"sums"}
    assert bundle.facts["trained"] == sum(value.numel() for value in bundle.model.values()) < bundle.facts["parameters"]
    [prompt] = task.prompts(bundle.public, np.array([0]))
    a, b = bundle.public["terms"][0]
    assert prompt == (
        f"<|im_start|>system\nAnswer with a number.<|im_end|>\n<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    sequences = join(task.tokenizer(), task.prompts(bundle.public, np.arange(9)), ["12"] * 9)
    assert sequences.shared > 16


def test_other_adapters_and_wrong_weights_are_refused(tiny_hub_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    task = TinyAddition()
    bundle = task.build(Data(data_folder()))
    with pytest.raises(GateError, match=r"adapters .* Delete the task's folder in \S+bundles and start the run again"):
        task.policy({name + "x": value for name, value in bundle.model.items()}, "fp32")
    with pytest.raises(GateError, match="adapters"):
        task.policy(dict(list(bundle.model.items())[1:]), "fp32")
    monkeypatch.setattr(TinyAddition, "gate", (1.0, 4.0))
    # A model that has learned nothing knows no English.
    with pytest.raises(GateError, match=r"nats a token.*`selfbench data verify qwen25-05b-instruct`.*another `gate`"):
        task.build(Data(data_folder()))
