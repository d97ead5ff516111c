"""WILDS tasks whose examples are texts, tokenised once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array
from ...suite.data import Data
from ...suite.errors import DataMissing
from ...suite.places import data_folder
from ...suite.protocols.adaptation import Vocabulary
from .networks import PAD, distilbert, masked_language_model
from .task import WildsTask

MODEL = "distilbert-base-uncased"
_CHUNK = 20_000


class WildsTexts(WildsTask):
    """Public arrays: `tokens` uint16 (T,), the token ids of all texts end to end, and `offsets` int64 (N + U + 1,).

    Texts are cut to `length` tokens, [CLS] and [SEP] among them. No view changes them, as in WILDS 2.0. They pass in
    groups of similar length (`networks.py`); a larger batch of evaluation has more of each.
    """

    length: ClassVar[int]
    evaluation_batch: ClassVar[int] = 256

    def arrays(self, data: Data, dataset: Any, rows: Array) -> dict[str, Array]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(data.file(MODEL, "tokenizer.json")))
        tokenizer.enable_truncation(max_length=self.length)
        tokenizer.no_padding()
        tokens, lengths = [], []
        for start in range(0, len(rows), _CHUNK):
            self.tell(f"tokenising: {start:,} of {len(rows):,} texts")
            texts = [str(dataset.get_input(row)) for row in rows[start : start + _CHUNK]]
            ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
            lengths += [len(text) for text in ids]
            tokens.append(np.concatenate([np.array(text, np.uint16) for text in ids]))
        return {"tokens": np.concatenate(tokens), "lengths": np.array(lengths, np.int64)}

    def joined(self, parts: list[dict[str, Array]]) -> dict[str, Array]:
        lengths = np.concatenate([part["lengths"] for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return {"tokens": np.concatenate([part["tokens"] for part in parts]), "offsets": offsets}

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Token ids int64 (B, length), padded with 0."""
        begin, end = public["offsets"][indices][:, None], public["offsets"][indices + 1][:, None]
        where = begin + np.arange(self.length)
        inside = where < end
        return torch.from_numpy(np.where(inside, public["tokens"][np.where(inside, where, 0)], PAD).astype(np.int64))

    def model(self) -> nn.Module:
        return distilbert(self.n_classes, MODEL)

    def vocabulary(self) -> Vocabulary:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Data(data_folder()).file(MODEL, "tokenizer.json")))
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        found = [tokenizer.token_to_id(name) for name in names]
        special = tuple(number for number in found if number is not None)
        if len(special) < len(names):
            raise DataMissing(f"The tokenizer.json of {MODEL} lacks one of {', '.join(names)}. Get the file again.")
        return Vocabulary(tokenizer.get_vocab_size(), special[-1], special)

    def language_model(self, model: nn.Module) -> nn.Module:
        return masked_language_model(model, MODEL)
