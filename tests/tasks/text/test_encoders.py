"""Encoders of other types of `transformers`: small random ones of each, in the files of the hub's layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.common.adapters import add_adapters
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.tasks.text.encoders import (
    Marks,
    TextEncoder,
    Tokens,
    bare_encoder,
    language_model,
    text_model,
)
from selfbench.tasks.text.finetune import FineTuned
from selfbench.tasks.text.frozen import encode
from selfbench.tasks.text.trec import TrecFew

NAME = "bert-base-uncased"
"""A data set whose files have no published digests: any type can stand in its place."""
WORDS = [f"w{number}" for number in range(40)]
SIZE = 5 + len(WORDS)
MARKS = Marks(pad=0, begin=1, end=2, mask=3, size=SIZE)
COMMON = {"vocab_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
          "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
PROMPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "mpnet": ("MPNet", {"hidden_size": 16}),
    "deberta": ("Deberta", {"hidden_size": 16, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("DebertaV2", {"hidden_size": 16, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "electra": ("Electra", {"hidden_size": 16, "embedding_size": 8}),
    "albert": ("Albert", {"hidden_size": 16, "embedding_size": 8}),
    "modernbert": ("ModernBert", {"hidden_size": 16, "local_attention": 8, "bos_token_id": 1, "eos_token_id": 2,
                                  "cls_token_id": 1, "sep_token_id": 2}),
}  # fmt: skip
BARE: dict[str, tuple[str, dict[str, Any]]] = {
    "roformer": ("RoFormer", {"hidden_size": 16}),
    "deberta-v3": ("DebertaV2", {"hidden_size": 16, "legacy": False}),
    "splinter": ("Splinter", {"hidden_size": 16}),
}
"""Types whose output layer is not known here, the last without one in `transformers`."""
ALL = PROMPTED | BARE


def save(root: Path, kind: str) -> Any:
    """The files of an encoder of the type, with a tokenizer of whole words; the model itself."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = root / NAME
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    name, own = ALL[kind]
    config = getattr(transformers, f"{name}Config")(**COMMON, **own)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(transformers, f"{name}ForMaskedLM", None) or getattr(transformers, f"{name}Model")
        net = net(config)
        for item, parameter in net.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in item.lower() and "weight" in item), std=0.2)
    net.save_pretrained(folder)
    return net.eval()


def some_ids(rows: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    ids = torch.zeros(rows, 20, dtype=torch.int64)
    for row in range(rows):
        n = int(torch.randint(2, 18, (1,), generator=draw))
        ids[row, 0], ids[row, n + 1] = MARKS.begin, MARKS.end
        ids[row, 1 : n + 1] = torch.randint(5, SIZE, (n,), generator=draw)
        ids[row, n // 2] = MARKS.mask
    return ids


@pytest.mark.parametrize("kind", ALL)
def test_any_type_is_an_encoder_under_a_linear_head(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfbench.tasks.text.encoders._HOST_TOKENS", 8)
    whole, ids = save(tmp_path, kind), some_ids()
    net = bare_encoder(Data(tmp_path), NAME)
    mask = (ids != 0).long()
    with torch.no_grad():
        states = net(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = whole.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)
        means = torch.stack([row[:n].mean(dim=0) for row, n in zip(states, mask.sum(1), strict=True)])
        found = TextEncoder(net, MARKS, "mean", scale=3.0)(ids)
        torch.testing.assert_close(found, 3.0 * means / means.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    model = text_model(Data(tmp_path), Tokens(Data(tmp_path), NAME), 3, "mean", (), False)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    model(ids).square().sum().backward()
    trained = [item.grad is not None for item in model.encoder.parameters() if item.requires_grad]
    assert sum(trained) > 10
    assert not model.encoder.word_embeddings().requires_grad


@pytest.mark.parametrize("kind", PROMPTED)
def test_a_prompt_is_answered_by_the_output_layer_of_the_type(tmp_path: Path, kind: str) -> None:
    whole, ids = save(tmp_path, kind), some_ids()
    tokens = Tokens(Data(tmp_path), NAME)
    model = text_model(Data(tmp_path), tokens, 2, "first", ("w3", "w7"), False).eval()
    with torch.no_grad():
        of_words = whole(input_ids=ids, attention_mask=(ids != 0).long()).logits[ids == MARKS.mask]
        torch.testing.assert_close(model(ids), of_words[:, [8, 12]], rtol=0, atol=1e-5)
        found = language_model(Data(tmp_path), tokens, model).eval()(ids, ids == MARKS.mask)
        torch.testing.assert_close(found, of_words, rtol=0, atol=1e-5)
    # The layers of ALBERT are one.
    assert len(add_adapters(model, 3)) == (2 if kind == "albert" else 4)


@pytest.mark.parametrize("kind", BARE)
def test_prompts_and_hidden_words_need_an_output_layer_that_is_known(tmp_path: Path, kind: str) -> None:
    net = save(tmp_path, kind)
    tokens, named = Tokens(Data(tmp_path), NAME), f"type '{net.config.model_type}'"
    with pytest.raises(DataMissing, match=f"{named}.*has no output layer that is known here"):
        text_model(Data(tmp_path), tokens, 2, "first", ("w3", "w7"), False)
    headed = text_model(Data(tmp_path), tokens, 2, "mean", (), False)
    with pytest.raises(DataMissing, match=named):
        language_model(Data(tmp_path), tokens, headed)  # type: ignore[arg-type]


def test_a_prompt_needs_the_weights_of_the_output_layer(tmp_path: Path) -> None:
    save(tmp_path, "mpnet").base_model.save_pretrained(tmp_path / NAME)
    tokens = Tokens(Data(tmp_path), NAME)
    with pytest.raises(DataMissing, match=r"lacks weights that a prompt needs, of the output layer .* 'mpnet'"):
        text_model(Data(tmp_path), tokens, 2, "first", ("w3", "w7"), False)
    text_model(Data(tmp_path), tokens, 2, "mean", (), False)


def read(self: Any, data: Data) -> Any:
    def part(first: int, per_class: int) -> list[tuple[str, str]]:
        return [
            (name, f"w{number} w{6 * (number % 5) + group} w{31 + (number + group) % 9}")
            for group, name in enumerate(self.classes)
            for number in range(first, first + per_class)
        ]

    return part(0, 24), part(24, 6)


def test_the_encoder_of_frozen_vectors_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[..., Any]
) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    save(tmp_path, "mpnet")
    texts, told = [f"w{number % 30} w{number % 7} w3" + " w9" * (number % 5) for number in range(70)], []
    public, _ = encode(Data(tmp_path), texts, 12, told.append, NAME)
    ids = torch.from_numpy(public["ids"].astype(np.int64))
    with torch.no_grad():
        net = TextEncoder(bare_encoder(Data(tmp_path), NAME), MARKS, "mean", scale=1.0)
        torch.testing.assert_close(torch.from_numpy(public["vectors"]), net(ids), rtol=0, atol=1e-5)
    assert told[-1] == "encoding: 70 of 70 texts"
    # Other weights under the same name have other vectors.
    save(tmp_path, "electra")
    other = encode(Data(tmp_path), texts, 12, told.append, NAME)[0]["vectors"]
    assert not np.allclose(other, public["vectors"], atol=1e-3)

    class Frozen(TrecFew):
        encoder, width, length = NAME, 16, 12
        recipe = dataclasses.replace(TrecFew.recipe, points=1)

    monkeypatch.setattr(Frozen, "read", read)
    folder = write_bundle(tmp_path / "bundle", Frozen().build(Data(tmp_path)))
    outcome = play(Supervised(), Frozen(), folder, limit=3_000.0)
    assert 0.0 <= outcome.metrics["accuracy"] <= 1.0


def test_a_task_is_fine_tuned_on_an_encoder_of_another_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[..., Any]
) -> None:
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    save(tmp_path, "deberta-v2")

    class Tuned(FineTuned, TrecFew):
        encoder, length = NAME, 12
        recipe = dataclasses.replace(FineTuned.recipe, points=1)

    monkeypatch.setattr(Tuned, "read", read)
    folder = write_bundle(tmp_path / "bundle", Tuned().build(Data(tmp_path)))
    outcome = play(Supervised(), Tuned(), folder, limit=500.0)
    assert 0.0 <= outcome.metrics["accuracy"] <= 1.0
