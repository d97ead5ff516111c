"""What tasks share whose model reads an encoder's states at single tokens: named entities, and answers in texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from ...suite.bundle import Array
from ...suite.data import Data
from ...suite.errors import MethodError
from ...suite.places import data_folder
from ...suite.protocols.adaptation import AdaptationTask
from .encoders import TextEncoder, bare_encoder
from .tokenized import Tokenized


class TokenStatesTask(Tokenized, AdaptationTask):
    """Token ids end to end in the bundle, made into batches when they are asked for; predictions of tokens or spans,
    which are sealed and kept as they are.
    """

    encoder: ClassVar[str] = "bert-base-multilingual-cased"
    length: ClassVar[int]
    """Tokens of an example at most, marks included."""
    lazy: ClassVar[bool] = True
    label_free: ClassVar[bool] = False
    evaluation_batch: ClassVar[int] = 64

    def pretrained_encoder(self) -> TextEncoder:
        """The encoder with the weights of its files. Raises `DataMissing` where they are not there."""
        return TextEncoder(bare_encoder(Data(data_folder()), self.encoder), self.marks, "first")

    def predicted(self, sealed: Array) -> Array:
        return sealed

    def unpredicted(self, predicted: Array) -> Array:
        return predicted


class TokenStates(nn.Module):
    """An encoder, and a linear layer that begins at zero and reads the states (n, D) of chosen tokens, row by row."""

    def __init__(self, encoder: TextEncoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def at(self, ids: Tensor, places: Tensor, elsewhere: float) -> Tensor:
        """What the layer says at the bool `places` (B, T) of ids (B, T), `elsewhere` at others: (B, T, outputs)."""
        own = self.head(self.encoder(ids, places))
        found: Tensor = own.new_full((*ids.shape, own.shape[1]), elsewhere)
        found[places] = own
        return found


def checked(outputs: Any, shape: tuple[int, ...], owner: str, what: str) -> Tensor:
    """`outputs` if they are a tensor of `shape` (n, ...), else `MethodError` with the method's name `owner`."""
    if not isinstance(outputs, Tensor) or outputs.shape != shape:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise MethodError(f"method '{owner}' returned {got} for {shape[0]} {what}; expected {shape}")
    return outputs


def offsets_of(lengths: Iterable[int]) -> Array:
    """Where each of N pieces begins that stand end to end, and the end of the last: int64 (N + 1,)."""
    return np.cumsum([0, *lengths]).astype(np.int64)
