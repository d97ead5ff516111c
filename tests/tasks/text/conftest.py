"""A multilingual encoder in miniature, whose tokens are letters, in the files of the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

LETTERS = "abcdefghijklmnopqrstuvwxyzéñ大阪市長0123456789.,?()"


@pytest.fixture
def letters() -> Callable[..., dict[str, int]]:
    """letters(folder, layers=..., longest=...): a BERT and a tokenizer of letters as files; its vocabulary."""

    def save(folder: Path, layers: int = 2, longest: int = 48) -> dict[str, int]:
        import transformers
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        vocabulary = {name: number for number, name in enumerate(names)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=longest,
        )  # fmt: skip
        transformers.BertForMaskedLM(config).save_pretrained(folder)
        return vocabulary

    return save
