"""The sentence encoder's surroundings, on a BERT of two tiny layers in the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.tasks.text import vectors
from selfbench.tasks.text.minilm import (
    CLS,
    PAD,
    SEP,
    SentenceClassifier,
    drop_words,
    embed,
    load_encoder,
    sentence_vectors,
    tokenize,
)

WIDTH = 16
VOCABULARY = 200


class Folder:
    """What `tokenize` and `load_encoder` ask of `Data`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, dataset: str, member: str) -> Path:
        assert dataset == "minilm"
        return self.root / member


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    root = tmp_path_factory.mktemp("minilm")
    vocabulary = {"[PAD]": PAD, "[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP} | {f"w{i}": i for i in range(1, 60)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.save(str(root / "tokenizer.json"))
    shape = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 64}  # fmt: skip
    (root / "config.json").write_text(json.dumps(shape))
    torch.manual_seed(0)
    save_file(BertModel(BertConfig(**shape), add_pooling_layer=False).state_dict(), root / "model.safetensors")
    return Folder(root)


@pytest.fixture(scope="module")
def ids(data: Folder) -> np.ndarray:
    texts = [" ".join(f"w{1 + (7 * i + j) % 59}" for j in range(1 + 5 * i % 23)) for i in range(20)]
    return tokenize(data, texts, 12)


def test_token_ids_are_cut_and_padded(ids: np.ndarray) -> None:
    assert ids.dtype == np.uint16
    assert (ids[:, 0] == CLS).all()
    assert ((ids == SEP).sum(axis=1) == 1).all()
    assert ids[0].tolist() == [CLS, 1, SEP, *[PAD] * 9]
    assert (ids[3] != PAD).all()


def test_sentence_vectors_are_the_mean_of_states_of_each_text_alone(data: Folder, ids: np.ndarray) -> None:
    encoder = load_encoder(data)
    found = embed(encoder, ids, workers=2, batch_size=3)
    for row, text in enumerate(ids):
        alone = torch.from_numpy(text[text != PAD].astype(np.int64))[None]
        with torch.no_grad():
            states: Tensor = encoder(input_ids=alone).last_hidden_state[0]
        mean = states.mean(dim=0)
        np.testing.assert_allclose(found[row], (mean / mean.norm()).numpy(), atol=1e-5)


def test_the_number_of_workers_changes_no_bit_and_progress_is_told(data: Folder, ids: np.ndarray) -> None:
    encoder, told = load_encoder(data), []
    one = embed(encoder, ids, workers=1, batch_size=4, tell=told.append)
    assert told == [4, 8, 12, 16, 20]
    assert np.array_equal(one, embed(encoder, ids, workers=3, batch_size=4))


def test_parts_change_no_bit(data: Folder, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PART", 8)
    encoder = load_encoder(data)
    found, _ = vectors.kept_vectors(
        tmp_path / "v.npz",
        (ids != PAD).sum(axis=1),
        lambda rows, done: embed(encoder, ids[rows], batch_size=4, tell=done),
    )
    assert np.array_equal(found, embed(encoder, ids, batch_size=4))


def test_words_are_dropped_but_never_the_frame(ids: np.ndarray) -> None:
    tokens = torch.from_numpy(ids.astype(np.int64)).repeat(50, 1)
    dropped = drop_words(tokens, torch.Generator().manual_seed(0), share=0.5)
    for special in (CLS, SEP):
        assert torch.equal(dropped == special, tokens == special)
    words = (tokens != PAD) & (tokens != CLS) & (tokens != SEP)
    assert (dropped[words] == PAD).float().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(drop_words(tokens, torch.Generator(), share=0.0), tokens)


def test_encoder_and_head_learn_together(data: Folder, ids: np.ndarray) -> None:
    torch.manual_seed(0)
    model = SentenceClassifier(load_encoder(data), WIDTH, 4, scale=5.0)
    inputs, labels = torch.from_numpy(ids.astype(np.int64)), torch.arange(20) % 4
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("encoder.embeddings") for name in moved)
    assert any(name.startswith("head") for name in moved)
    torch.testing.assert_close(sentence_vectors(model.encoder, inputs).norm(dim=1), torch.ones(20))
