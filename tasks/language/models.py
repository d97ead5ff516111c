"""Pre-trained language models as policies: their checkpoint, their tokens, their chat template, and adapters.

A model is the name of a data set in `tasks/datasets.toml`: the files of a `transformers` model (`config.json`,
`tokenizer.json`, `tokenizer_config.json`, `model.safetensors`), or a single GGUF file, which is dequantised once into
that layout, at <cache>/models/<name>-<digest>. Of the extra `[language]` conversion needs `gguf`, adapters need `peft`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...suite.errors import DataMissing, UsageError
from ...suite.files import locked, sha256_file
from ...suite.places import cache_folder
from ...suite.protocols.tokens import CUT_OFF

if TYPE_CHECKING:
    from ...suite.bundle import Array
    from ...suite.data import Data

EXTRA = "pip install 'selfbench[language]'"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections that get adapters, by their names in Llama, Qwen, Mistral and their kin."""
_OWN_FRAME = (
    "Put the template of the model's family there as `chat_template.jinja`, or let the task set `frame`, what stands "
    "before and after a prompt."
)
_USER, _REPLY, _NEXT = "\x1fthe user's words\x1f", "\x1fa reply\x1f", "\x1fmore words\x1f"


def gguf_file(data: Data, name: str) -> str:
    """The GGUF file of the model `name`, an empty string where its files are those of `transformers`."""
    members = [member.name for member in data.describe(name).members]
    return next((member for member in members if member.endswith(".gguf")), "")


def digest(data: Data, name: str) -> str:
    """The sha256 of the weights of the model `name`: the published one, or that of the file."""
    file = gguf_file(data, name) or "model.safetensors"
    published = next(member.sha256 for member in data.describe(name).members if member.name == file)
    return published or sha256_file(data.file(name, file))


def checkpoint(data: Data, name: str) -> Path:
    """The folder of the model `name` in the layout of `transformers`; a GGUF file is converted where that was not done.

    Raises `DataMissing` where its files are not here, `UsageError` where a package is missing.
    """
    file = gguf_file(data, name)
    if not file:
        for member in data.describe(name).members:
            data.file(name, member.name)
        return data.folder(name)
    folder = cache_folder() / "models" / f"{name}-{digest(data, name)[:12]}"
    with locked(folder.parent / f".{folder.name}.lock"):
        if not (folder / "model.safetensors").is_file():
            _convert(data.file(name, file), folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32, beside `folder`, and rename it there: half a checkpoint is never seen."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UsageError(f"GGUF files are read by the package gguf: type `{EXTRA}`.") from None
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        tokenizer.save_pretrained(part)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        # What was quantised does not serialise itself; the weights and a plain configuration do.
        config = {**model.config.to_dict(), "dtype": "float32", "torch_dtype": "float32"}
        config.pop("quantization_config", None)
        (part / "config.json").write_text(json.dumps(config, indent=1, default=str))
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        weights = {key: value.float().contiguous() for key, value in model.state_dict().items() if key not in tied}
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class SubwordTokenizer:
    """The tokens of `tokenizer.json` in a model's folder; `stop` ends a response, `pad` fills batches.

    Special tokens that are written out in a text, as a chat template's are, become those tokens.
    """

    def __init__(self, folder: Path, stop: str, pad: str) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.stop, self.pad = (self._number(token, path) for token in (stop, pad))
        if stop == pad:
            raise UsageError(
                f"{stop} ends a response, and cannot fill batches too: let the task's `pad` be another token of {path}."
            )

    def _number(self, token: str, path: Path) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise DataMissing(
                f"{path} has no token {token}. Let `stop` and `pad` of the task name tokens of this model, which stand "
                "under `added_tokens` in that file."
            )
        return int(number)

    def containing(self, symbol: str) -> list[int]:
        """The tokens with `symbol` in their text: in a large vocabulary a newline is also one of `.` and a newline."""
        numbers = list(range(self._tokenizer.get_vocab_size()))
        texts = self._tokenizer.decode_batch([[number] for number in numbers], skip_special_tokens=False)
        return [number for number, text in zip(numbers, texts, strict=True) if symbol in text]

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        found = [item.ids for item in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in found], np.int64)
        ids = np.full((len(texts), int(lengths.max(initial=0))), self.pad, np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = [token for row in found for token in row]
        return ids, lengths

    def decode(self, ids: Array) -> list[str]:
        stops = ids == self.stop
        ends = np.where(stops.any(axis=1), stops.argmax(axis=1), ids.shape[1]).tolist()
        rows = [row[:end] for row, end in zip(ids.tolist(), ends, strict=True)]
        # Unfinished rows may have padding at their end; texts over the line hold no NUL.
        rows = [[token for token in row if token != self.pad] for row in rows]
        texts = self._tokenizer.decode_batch(rows, skip_special_tokens=False)
        whole = stops.any(axis=1).tolist()
        return [text.replace("\0", "") + ("" if stop else CUT_OFF) for text, stop in zip(texts, whole, strict=True)]


def chat_frame(folder: Path, system: str) -> tuple[str, str]:
    """What the model's chat template writes before and after the words of a user, the turn of the assistant begun.

    Raises `UsageError` where the tokenizer has no chat template.
    """
    text = _chat(folder, system, _USER)
    if text.count(_USER) != 1:
        raise UsageError(f"The chat template in {folder} does not write a user's words once: {text!r}. {_OWN_FRAME}")
    before, _, after = text.partition(_USER)
    return before, after


def chat_turn(folder: Path, system: str) -> tuple[str, str]:
    """What the chat template writes before the first words of a user, and between a reply and the next ones.

    Raises `UsageError` where it writes earlier turns in another way than the last one.
    """
    before, after = chat_frame(folder, system)
    text = _chat(folder, system, _USER, _REPLY, _NEXT)
    begun, ended = before + _USER + after + _REPLY, _NEXT + after
    if not text.startswith(begun) or not text.endswith(ended):
        raise UsageError(
            f"The chat template in {folder} writes a turn that has been replied to otherwise: {text!r}. Let the task "
            "grant neither `shots` nor `attempts`, or take a model whose template writes all turns alike."
        )
    return before, text[len(begun) : len(text) - len(ended)]


def _chat(folder: Path, system: str, *words: str) -> str:
    """The chat in which `words` are those of user and assistant in turns, and the assistant is to go on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer in {folder} has no chat template. {_OWN_FRAME}")
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(words)]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def add_adapters(model: nn.Module, rank: int, scale: float, seed: int, targets: Sequence[str] = ATTENTION) -> None:
    """Put LoRA adapters (Hu et al., 2022, arXiv:2106.09685) into `model`; they alone are trained from here on.

    W x + scale B A x, with A drawn by `seed` and B = 0, so that the model is unchanged. Raises `UsageError` without the
    package `peft`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise UsageError(f"Adapters are those of the package peft: type `{EXTRA}`.") from None
    config = LoraConfig(
        r=rank, lora_alpha=round(scale * rank), target_modules=list(targets), lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast would undo peft's own cast to the adapters' float32, without a trace but its time.
            module.cast_input_dtype_enabled = False


def adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are trained, by name."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def load_model(folder: Path, attention: str = "sdpa") -> Any:
    """The causal language model in `folder`, in eval mode, nothing of it trained.

    `attention` is the implementation, as `transformers` calls it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, attn_implementation=attention)
    return model.requires_grad_(False).eval()


def set_precision(model: nn.Module, precision: str) -> None:
    """Hold what is not trained as bf16 where that is the run's precision, as float32 otherwise; adapters are float32.

    Without it each pass would round all frozen weights anew, for autocast keeps copies of trained ones alone.
    """
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    for value in model.parameters():
        value.data = value.data.to(torch.float32 if value.requires_grad else frozen)
