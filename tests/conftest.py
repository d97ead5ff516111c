"""Shared parts: a cache and toys of their own, one warmed executor, and the command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare
from selfbench.suite.engine.runner import Summary, run
from selfbench.suite.record import Record
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import Settings, expand

TOYS = Path(__file__).parent / "toys"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU skip with a reason where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Toy tasks and hostile methods are registered, and the cache is the session's own; downloaded data is shared."""
    from selfbench.suite.places import data_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFBENCH_DATA", str(data_folder()))
        patch.setenv("SELFBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SELFBENCH_PATH", str(TOYS))
        patch.delenv("SELFBENCH_RESULTS", raising=False)
        yield


@pytest.fixture(scope="session")
def executor(toys: None) -> Iterator[LocalExecutor]:
    # As `warm_modules` has it for campaigns of adaptation.
    with LocalExecutor(2, warm=("sklearn.neighbors",)) as local:
        yield local


class Events:
    """A watcher that remembers what it heard."""

    def __init__(self) -> None:
        self.finished_labels: list[str] = []

    def started(self, spec: RunSpec, under_way: int) -> None: ...
    def tick(self, shares: dict[str, float]) -> None: ...

    def finished(self, spec: RunSpec, record: Record | None, note: str) -> None:
        self.finished_labels.append(spec.label)


Campaign = Callable[..., Summary]


@pytest.fixture
def campaign(executor: LocalExecutor, tmp_path: Path) -> Campaign:
    """Run methods on a task through the real engine; returns the summary."""

    def call(task: str, *methods: object, seeds: tuple[int, ...] = (0,), folder: str = "results", **options: object):
        budget = options.pop("budget", None)
        selection = options.pop("selection", None)
        settings = options.pop("settings", Settings())
        specs = expand(
            tasks=[task], methods=methods, seeds=seeds, settings=settings, budget=budget, selection=selection
        )
        store = Store(tmp_path / folder)
        prepare(specs, executor, store, lambda text: None)
        return run(specs, store, executor, Events(), **options)

    return call


class Called:
    """What a command printed, and its exit code."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


def command(*words: object, cwd: Path | None = None, timeout: float = 120, **environment: str) -> Called:
    """Call `selfbench WORDS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "selfbench.suite", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )
    return Called(done)


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., Called]:
    """The command line, called in an empty folder."""

    def call(*words: object, **options: object) -> Called:
        return command(*words, cwd=tmp_path, **options)

    return call


@pytest.fixture
def tiny_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the layout of SmolLM2, far smaller, with a tokenizer made here: the files of the data set
    `qwen25-05b-instruct`, which have no published digest."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "qwen25-05b-instruct"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
