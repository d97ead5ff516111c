"""Text encoders that are fine-tuned: their tokens, their weights, and classifiers on top of them.

An encoder is the name of a data set in `tasks/datasets.toml` with the files of a `transformers` model: `config.json`,
`tokenizer.json` and `model.safetensors`, in the data root as everything else, of a pinned revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.errors import DataMissing
from .minilm import load_encoder

if TYPE_CHECKING:
    from ...suite.bundle import Array
    from ...suite.data import Data

BETWEEN = "\x1f"
"""Stands between the two texts of a pair."""
_CHUNK = 20_000
_LONGER = 1.25
_HOST_TOKENS, _DEVICE_TOKENS = 96, 8192


@dataclass(frozen=True)
class Marks:
    """The numbers of an encoder's special tokens, and how many tokens there are."""

    pad: int
    begin: int
    end: int
    mask: int
    size: int

    @property
    def special(self) -> tuple[int, ...]:
        return self.pad, self.begin, self.end, self.mask


class Tokens:
    """The tokenizer of the encoder `name`. Raises `DataMissing` where its file lacks what is needed."""

    def __init__(self, data: Data, name: str) -> None:
        from tokenizers import Tokenizer

        self.name = name
        path = data.file(name, "tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ends = self._tokenizer.encode("").ids
        if len(ends) != 2:
            raise DataMissing(f"{path}: the tokens of an empty text are {ends}, expected a first and a last mark.")
        pad, mask = (self._number(path, names) for names in (("[PAD]", "<pad>"), ("[MASK]", "<mask>")))
        self.marks = Marks(pad, ends[0], ends[1], mask, self._tokenizer.get_vocab_size())

    def _number(self, path: Path, names: Sequence[str]) -> int:
        found = [number for name in names if (number := self._tokenizer.token_to_id(name)) is not None]
        if not found:
            raise DataMissing(f"{path} has no token {' or '.join(names)}.")
        return int(found[0])

    @property
    def unknown(self) -> int:
        """The number of the token that stands for what has none."""
        return self._number(Path(self.name), ("[UNK]", "<unk>"))

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts, without marks."""
        return [item.ids for item in self._encoded(texts)]

    def located(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The token ids of texts, without marks, and of each token where it stands: its first character, and one after.

        Characters are those of the text as it is given.
        """
        return [(item.ids, item.offsets) for item in self._encoded(texts)]

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        return list(self._tokenizer.encode_batch(list(texts), add_special_tokens=False))

    def word(self, text: str) -> int:
        """The number of a word that is one token, within a sentence. Raises `ValueError` where it is more."""
        (ids,) = self.plain([" " + text])
        if len(ids) != 1:
            raise ValueError(f"'{text}' is {len(ids)} tokens; a label word must be one.")
        return ids[0]


def texts_to_tokens(
    tokens: Tokens, texts: Sequence[str], length: int, template: str, tell: Callable[[str], None]
) -> dict[str, Array]:
    """`tokens` (T,), the token ids of all texts end to end, and `offsets` int64 (N + 1,), where each begins.

    Each is [begin] text [end], or [begin] text [end] second text [end] for a pair (`BETWEEN`), of at most `length`
    tokens; of a pair the longer text is cut first. A `template` such as "{0} It was {mask}." says what else stands
    there: {0} and {1} are the texts, {mask} the hidden token. It is never cut; what stands in {0} and {1} is.
    """
    marks = tokens.marks
    kind = np.uint16 if marks.size <= 1 << 16 else np.int32
    frame = _frame(tokens, template)
    parts: list[Array] = []
    lengths: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        tell(f"tokenising: {start:,} of {len(texts):,} texts")
        rows = [text.split(BETWEEN) for text in texts[start : start + _CHUNK]]
        flat = iter(tokens.plain([part for row in rows for part in row]))
        for row in rows:
            ids = assemble([next(flat) for _ in row], frame, marks, length)
            parts.append(np.array(ids, kind))
            lengths.append(len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return {"tokens": np.concatenate(parts) if parts else np.empty(0, kind), "offsets": offsets}


Frame = Sequence[int | list[int]]
"""A number is a text, a list is token ids that stand as they are."""


def _frame(tokens: Tokens, template: str) -> Frame | None:
    if not template:
        return None
    frame: list[int | list[int]] = []
    mask = "{mask}"
    for piece in _pieces(template, ("{0}", "{1}", mask)):
        if piece == mask:
            frame.append([tokens.marks.mask])
        elif piece in ("{0}", "{1}"):
            frame.append(int(piece[1]))
        else:
            frame.append(tokens.plain([piece])[0])
    return frame


def _pieces(template: str, marks: Sequence[str]) -> Iterator[str]:
    while template:
        first = min((mark for mark in marks if mark in template), key=template.index, default=None)
        if first is None:
            yield template
            return
        before, _, template = template.partition(first)
        if before:
            yield before
        yield first


def assemble(texts: list[list[int]], frame: Frame | None, marks: Marks, length: int) -> list[int]:
    """The token ids of one example, at most `length`: see `texts_to_tokens`."""
    if frame is None:
        frame = [0] if len(texts) == 1 else [0, [marks.end], 1]
    room = length - 2 - sum(len(piece) for piece in frame if isinstance(piece, list))
    while sum(map(len, texts)) > room:
        longest = max(texts, key=len)
        del longest[-(max(1, min(sum(map(len, texts)) - room, len(longest) - min(map(len, texts))))) :]
    inside = [token for piece in frame for token in (piece if isinstance(piece, list) else texts[piece])]
    return [marks.begin, *inside, marks.end]


def padded(tokens: Array, offsets: Array, indices: Array, length: int, pad: int) -> Tensor:
    """Token ids int64 (B, length) of the texts `indices`, padded at their end."""
    begin, end = offsets[indices][:, None], offsets[indices + 1][:, None]
    where = begin + np.arange(length)
    inside = where < end
    return torch.from_numpy(np.where(inside, tokens[np.where(inside, where, 0)], pad).astype(np.int64))


def drop_words(ids: Tensor, generator: torch.Generator, share: float, marks: Marks) -> Tensor:
    """Leave out a random `share` of the tokens of (B, T): they become padding. Special tokens stay."""
    left_out = torch.rand(ids.shape, generator=generator, device=ids.device) < share
    for token in marks.special:
        left_out &= ids != token
    return ids.masked_fill(left_out, marks.pad)


class _Group(NamedTuple):
    """Texts of similar length: their rows (b,), token ids (b, t), where these stood, which are no padding (b, t)."""

    rows: Tensor
    ids: Tensor
    places: Tensor
    shown: Tensor


class TextEncoder(nn.Module):
    """Token ids (B, T), padding anywhere -> a vector (B, D) of each text, or the states of chosen tokens.

    What is padding is not computed. The tokens of a text move together, keeping the positions they had where the
    encoder lets positions be given (BERT); texts are taken in the order of their lengths, in groups of similar ones,
    each cut to its longest. Which texts are in a batch is not changed, and each text's result but for rounding neither
    (tested). The lengths are brought to the host, on a GPU once a pass.

    `pooling` is "mean" (of all tokens' states, scaled to the length `scale`), "first" (the first token's) or "mask"
    (that of the token [MASK]).
    """

    def __init__(self, net: nn.Module, marks: Marks, pooling: str, scale: float = 20.0) -> None:
        super().__init__()
        self.net = net
        self.marks = marks
        self.pooling = pooling
        self.scale = scale
        config: Any = net.config
        self.width = int(config.hidden_size if hasattr(config, "hidden_size") else config.dim)
        self.gives_positions = config.model_type == "bert"
        self.two_kinds = getattr(config, "type_vocab_size", 1) > 1

    def word_embeddings(self) -> nn.Parameter:
        """The vectors (V, D) of the words."""
        return self.net.get_input_embeddings().weight  # type: ignore[operator,no-any-return]

    def forward(self, ids: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Vectors (B, D) of ids (B, T); or, where tokens are `chosen` (B, T), their states (n, D), in rows' order."""
        groups = self._groups(ids)
        rows = torch.cat([group.rows for group in groups])
        if chosen is None:
            return torch.cat([self._pool(self._states(group), group) for group in groups])[torch.argsort(rows)]
        states, places = [], []
        for group in groups:
            wanted = chosen[group.rows[:, None], group.places] & group.shown
            states.append(self._states(group)[wanted])
            places.append((group.rows[:, None] * ids.shape[1] + group.places)[wanted])
        return torch.cat(states)[torch.argsort(torch.cat(places))]

    def _states(self, group: _Group) -> Tensor:
        given: dict[str, Tensor] = {"input_ids": group.ids, "attention_mask": group.shown.long()}
        if self.gives_positions:
            given["position_ids"] = group.places
        if self.two_kinds:
            ends = (group.ids == self.marks.end).long()
            given["token_type_ids"] = (ends.cumsum(1) - ends).clamp_(max=1)
        states: Tensor = self.net(**given).last_hidden_state
        return states

    def _groups(self, ids: Tensor) -> list[_Group]:
        empty = ids == self.marks.pad
        places = torch.argsort(empty.byte(), dim=1, stable=True)
        lengths = ids.shape[1] - empty.sum(dim=1)
        order = torch.argsort(lengths, descending=True, stable=True)
        enough = _HOST_TOKENS if ids.device.type == "cpu" else _DEVICE_TOKENS
        result, start = [], 0
        for n, longest in similar(lengths[order].tolist(), enough):
            rows = order[start : start + n]
            start += n
            kept = ids[rows].gather(1, places[rows, :longest])
            result.append(_Group(rows, kept, places[rows, :longest], kept != self.marks.pad))
        return result

    def _pool(self, states: Tensor, group: _Group) -> Tensor:
        if self.pooling == "first":
            return states[:, 0]
        if self.pooling == "mask":
            hidden = (group.ids == self.marks.mask).to(states.dtype)[:, :, None]
            return (states * hidden).sum(dim=1)
        weights = group.shown[:, :, None].to(states.dtype)
        return self.scale * F.normalize((states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1), dim=1)


def similar(lengths: Sequence[int], enough: int) -> Iterator[tuple[int, int]]:
    """Cut falling `lengths` into groups, each as (how many, the longest).

    A new group begins where a text is shorter by a quarter than the first of its group, and the group holds `enough`
    tokens: short passes cost more than the padding that they save.
    """
    begin = 0
    for at in range(1, len(lengths) + 1):
        longest = max(1, lengths[begin])
        if at == len(lengths) or (lengths[at] * _LONGER < longest and (at - begin) * longest >= enough):
            yield at - begin, longest
            begin = at


class TextClassifier(nn.Module):
    """An encoder and a linear head that begins at zero, trained together: ids (B, T) -> logits (B, K)."""

    def __init__(self, encoder: TextEncoder, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(ids))
        return logits


class PromptClassifier(nn.Module):
    """A masked language model that fills in the label word of a text: ids (B, T) with one [MASK] -> logits (B, K).

    The logits of the K label words are those of its own output layer, the rows of other words left out
    (Schick and Schuetze, 2021, arXiv:2001.07676; LiST, arXiv:2110.06274). `words` (K,) are the words' numbers.
    """

    def __init__(self, encoder: TextEncoder, transform: nn.Module, decoder: nn.Linear, words: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = transform
        self.head = nn.Linear(decoder.in_features, len(words))
        with torch.no_grad():
            self.head.weight.copy_(decoder.weight[list(words)])
            self.head.bias.copy_(decoder.bias[list(words)])

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.transform(self.encoder(ids)))
        return logits


class LanguageModel(nn.Module):
    """Token ids, and M chosen places (B, T) -> logits (M, V), by an output layer on the encoder of a classifier.

    The decoder is the word embeddings, as in BERT. `transform` and `bias` (V,) are those of the encoder's files; where
    these have none, as the encoder of the package index, a layer that begins as the identity under a norm, and zeros.
    """

    def __init__(self, encoder: TextEncoder, transform: nn.Module | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        words = encoder.word_embeddings()
        if transform is None:
            dense = nn.Linear(encoder.width, encoder.width)
            nn.init.eye_(dense.weight)
            nn.init.zeros_(dense.bias)
            transform = nn.Sequential(dense, nn.GELU(), nn.LayerNorm(encoder.width)).to(words)
        self.transform = transform
        self.bias = nn.Parameter(words.new_zeros(len(words)) if bias is None else bias.detach().clone())

    def forward(self, ids: Tensor, chosen: Tensor) -> Tensor:
        return F.linear(self.transform(self.encoder(ids, chosen)), self.encoder.word_embeddings(), self.bias)


def language_model(data: Data, tokens: Tokens, classifier: TextClassifier | PromptClassifier) -> LanguageModel:
    """The language model on the encoder of `classifier`: what trains the one trains the other.

    Raises `DataMissing` for a type of encoder whose output layer is not known here.
    """
    if tokens.name == "minilm":
        return LanguageModel(classifier.encoder)
    transform, decoder = output_layer(pretrained(data, tokens.name))
    if isinstance(classifier, PromptClassifier):
        transform = classifier.transform
    return LanguageModel(classifier.encoder, transform, decoder.bias)


def text_model(
    data: Data, tokens: Tokens, n_classes: int, pooling: str, words: Sequence[str], trained_embeddings: bool
) -> nn.Module:
    """The encoder that `tokens` belong to, with a classifier: the label `words` of its output layer, or else a head.

    Without `trained_embeddings` the word embeddings stay as they are, half of a small encoder's weights. Raises
    `DataMissing` where files are missing, or, with `words`, for a type of encoder whose output layer is not known here;
    `ValueError` for label words of several tokens.
    """
    model: nn.Module
    if words:
        whole = pretrained(data, tokens.name, prompted=True)
        transform, decoder = output_layer(whole)
        numbers = [tokens.word(word) for word in words]
        encoder = TextEncoder(whole.base_model, tokens.marks, "mask")
        model = PromptClassifier(encoder, transform, decoder, numbers)
    else:
        model = TextClassifier(TextEncoder(bare_encoder(data, tokens.name), tokens.marks, pooling), n_classes)
    model.encoder.word_embeddings().requires_grad_(trained_embeddings)
    return model


def bare_encoder(data: Data, name: str) -> nn.Module:
    """The encoder of the files of `name`, of any type of `transformers`, without what may stand on it; in eval mode."""
    if name == "minilm":
        return load_encoder(data)
    net: nn.Module = pretrained(data, name).base_model
    return net


def pretrained(data: Data, name: str, prompted: bool = False) -> Any:
    """The masked language model of the files of `name`, without a network, in eval mode. Without weights of its own for
    it, its output layer is random; where it is `prompted`, `DataMissing` is raised. Of a type that has no such model in
    `transformers`, the encoder alone.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel, AutoModelForMaskedLM
    from transformers.utils import logging as library_logging

    logging: Any = library_logging

    folder = data.file(name, "config.json").parent
    data.file(name, "model.safetensors")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    of_type: Any = AutoModelForMaskedLM if type(config) in MODEL_FOR_MASKED_LM_MAPPING else AutoModel
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # What of the files is not used, and how fast they are read, would stand in the log of every run.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        net, found = of_type.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if prompted and found["missing_keys"]:
        raise DataMissing(
            f"{folder / 'model.safetensors'} lacks weights that a prompt needs, of the output layer of the type "
            f"'{config.model_type}': {', '.join(sorted(found['missing_keys'])[:4])}."
        )
    return net.eval()


def output_layer(net: Any) -> tuple[nn.Module, nn.Linear]:
    """Of a masked language model: what stands between its encoder's states and the decoder, and the decoder.

    Raises `DataMissing` for types whose layers are not known here; a linear head does not need them.
    """
    kind = net.config.model_type
    if kind in ("bert", "deberta", "deberta-v2") and hasattr(net, "cls"):
        return net.cls.predictions.transform, net.cls.predictions.decoder
    if kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        head = net.lm_head
        return nn.Sequential(head.dense, nn.GELU(), head.layer_norm), head.decoder
    if kind == "distilbert":
        return nn.Sequential(net.vocab_transform, nn.GELU(), net.vocab_layer_norm), net.vocab_projector
    if kind == "albert":
        head = net.predictions
        return nn.Sequential(head.dense, head.activation, head.LayerNorm), head.decoder
    if kind == "electra" and hasattr(net, "generator_predictions"):
        return net.generator_predictions, net.generator_lm_head
    if kind == "modernbert":
        return net.head, net.decoder
    raise DataMissing(
        f"An encoder of the type '{kind}' ({type(net).__name__}) has no output layer that is known here. Prompts and "
        "hidden words need that of ALBERT, BERT, DeBERTa, DistilBERT, ELECTRA, ModernBERT, MPNet or RoBERTa; a linear "
        "head needs none."
    )
