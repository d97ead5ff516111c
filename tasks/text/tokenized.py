"""What tasks share whose inputs are the tokens of an encoder."""

from __future__ import annotations

import functools
from typing import ClassVar

from ...suite.data import Data
from ...suite.places import data_folder
from .encoders import Marks, Tokens


class Tokenized:
    """The tokenizer of a task's `encoder`, read once, and its special tokens; to stand before the task's class."""

    encoder: ClassVar[str]
    """The name of a data set with an encoder's files (`encoders.py`)."""

    @functools.cached_property
    def tokenizer(self) -> Tokens:
        return Tokens(Data(data_folder()), self.encoder)

    @property
    def marks(self) -> Marks:
        return self.tokenizer.marks
